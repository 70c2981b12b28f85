# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What training must not change: a frozen policy, held-out prompts, and results under another split of the batch."""

import logging
import math

import pytest
import torch

from tests.trainer import tiny
from vgf_llm.trainer.keep.rounds import is_held_out


class Backwards(torch.autograd.Function):
    """The identity; counts the backward passes that go through it."""

    count = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Backwards.count += 1
        return gradient


@pytest.mark.parametrize(
    ("parametrization", "backbone"), [("log_ratio", "lora"), ("log_ratio", "copy"), ("vocab", "policy")]
)
def test_a_frozen_policy_is_bit_identical(tmp_path, parametrization, backbone):
    run = tiny.trainer(tmp_path, value_parametrization=parametrization, value_backbone=backbone, weight_decay=0.1)
    before = tiny.policy_state(run)
    # Gradients reach the policy's layers on the way to the value's adapter, but never beyond the first one that has it.
    run.vgf_model.policy.get_input_embeddings().register_forward_hook(
        lambda module, args, output: Backwards.apply(output) if output.requires_grad else output
    )
    Backwards.count = 0
    run.train()
    after = dict(run.vgf_model.policy.named_parameters())
    own = [after[name] for name in before]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in own)
    assert {id(parameter) for parameter in own}.isdisjoint(map(id, run.optimizer.state))
    assert Backwards.count == 0


def test_a_frozen_policy_without_an_adapter_has_no_backward_at_all(tmp_path):
    run = tiny.trainer(tmp_path, value_parametrization="bilinear", value_backbone="policy")
    outputs = []
    for layer in run.vgf_model.policy.modules():
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    run.train()
    tensors = [x for output in outputs for x in (output if isinstance(output, tuple) else (output,))]
    assert outputs
    assert not any(isinstance(x, torch.Tensor) and x.requires_grad for x in tensors)


def test_distillation_trains_the_policy_and_keeps_the_reference(tmp_path):
    run = tiny.trainer(tmp_path, distill_coef=1.0, value_backbone="copy")
    before = tiny.policy_state(run)
    run.train()
    after = dict(run.vgf_model.policy.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    reference = dict(run.vgf_model.ref_model.named_parameters())
    assert all(torch.equal(before[name], reference[name]) for name in before)


SPLITS = [
    ({"value_parametrization": "log_ratio", "value_loss": "pairwise"}, (16, 1), (4, 4)),
    ({"value_parametrization": "log_ratio", "value_loss": "pairwise"}, (16, 1), (1, 16)),
    ({"value_parametrization": "log_ratio", "value_loss": "pairwise", "replay_ratio": 0.0}, (16, 1), (2, 8)),
    ({"value_parametrization": "log_ratio", "value_loss": "likelihood"}, (16, 1), (1, 16)),
    ({"value_parametrization": "log_ratio", "value_loss": "bernoulli"}, (16, 1), (2, 8)),
    ({"value_loss": "likelihood", "entropy_coef": 2.0}, (16, 1), (1, 16)),
    ({"value_loss": "pairwise", "entropy_coef": 2.0}, (16, 1), (2, 8)),
    ({"value_loss": "pairwise", "entropy_coef": 2.0}, (16, 1), (4, 4)),
    ({"value_parametrization": "vocab"}, (8, 1), (1, 8)),
    ({"value_parametrization": "bilinear", "value_loss": "pairwise"}, (8, 1), (1, 8)),
    ({"value_parametrization": "vocab", "distill_coef": 1.0}, (8, 1), (1, 8)),
    ({"value_parametrization": "log_ratio", "value_backbone": "copy", "distill_coef": 1.0}, (16, 1), (1, 16)),
    (
        {
            "value_parametrization": "sequence",
            "value_backbone": "copy",
            "value_ensemble_size": 2,
            "learning_rate": 0.03,
        },
        (16, 1),
        (1, 16),
    ),
]


@pytest.mark.parametrize(("settings", "whole", "split"), SPLITS, ids=str)
def test_accumulation_does_not_change_the_result(tmp_path, settings, whole, split):
    states, losses = [], []
    for per_device, accumulation in (whole, split):
        run = tiny.trainer(
            tmp_path,
            tiny.mostly_high if settings.get("value_loss") in ("bernoulli", "likelihood") else tiny.high_tokens,
            rollout_func=tiny.fixed_rollout,
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            # Steps proportional to the gradient: Adam's would blow rounding errors up where gradients vanish.
            optim="sgd",
            **{"replay_ratio": 0.75, "learning_rate": 0.3, **settings},
            max_grad_norm=0.0,
            max_steps=4,
        )
        start = tiny.value_state(run)
        run.train()
        states.append(tiny.value_state(run))
        losses.append(tiny.history(run, "loss"))
    assert max(float((states[0][name] - start[name]).abs().max()) for name in start) > 1e-3
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)


def test_held_out_prompts_teach_nothing(tmp_path):
    """Changing the rewards of held-out prompts alone changes neither losses, weights nor buffer."""

    def train(shift):
        def reward(prompts, completion_ids, **kwargs):
            shares = tiny.high_tokens(completion_ids)
            ids = run._tokenizer(prompts)["input_ids"]
            return [1 - r if shift and is_held_out(i, 0.3, 42) else r for r, i in zip(shares, ids, strict=True)]

        run = tiny.trainer(
            tmp_path, reward, rollout_func=tiny.fixed_rollout, value_holdout_ratio=0.3, max_steps=8, seed=42
        )
        run.train()
        return run

    plain, shifted = train(False), train(True)
    assert all(
        torch.equal(a, b) for a, b in zip(*(tiny.value_state(r).values() for r in (plain, shifted)), strict=True)
    )
    assert tiny.history(plain, "loss") == tiny.history(shifted, "loss")
    accuracy, inverted = (run.gate.accuracy for run in (plain, shifted))
    assert plain.gate.pairs > 10
    assert inverted == pytest.approx(1 - accuracy)  # they do enter the gate
    assert len(plain.rounds.buffer) > 0
    assert not any(is_held_out(group.prompt_ids.tolist(), 0.3, 42) for group in plain.rounds.buffer.groups)


def test_dropout_is_off_wherever_the_value_is_measured(tmp_path):
    model = tiny.llama(attention_dropout=0.5)
    run = tiny.trainer(tmp_path, model=model, distill_coef=1.0, value_backbone="copy", max_steps=1)
    modes = []

    def record(backbone, *_):
        if not torch.is_grad_enabled():  # with gradients it trains, and drops
            modes.append(backbone.training)

    run.vgf_model.value_model.base_model.register_forward_pre_hook(record)
    run.train()
    assert len(modes) >= 1
    assert not any(modes)
    assert run.vgf_model.training


def test_learning_orders_the_completions_of_unseen_prompts(tmp_path):
    def count(completion_ids, **kwargs):
        return [float(sum(token >= tiny.HIGH for token in ids)) for ids in completion_ids]

    rows = tiny.prompts(240)
    run = tiny.trainer(
        tmp_path,
        count,
        # LoRA leaves the output embedding alone, and on a random model little else moves the next token.
        value_backbone="copy",
        per_device_train_batch_size=32,
        num_generations=8,
        max_steps=20,
        max_completion_length=8,
        train_dataset=rows.select(range(200)),
        eval_dataset=rows.select(range(200, 216)),
        rollout_policy="base",  # of the base: samples that the value has not acted on yet
    )
    run.train()
    gate = run.gate
    assert gate.accuracy - 0.5 > 4 * 0.5 / math.sqrt(gate.pairs)
    assert run.evaluate()["eval_value/within_prompt_accuracy"] > 0.85


@pytest.mark.parametrize("backbone", ["lora", "copy"])
def test_distillation_raises_the_reward(tmp_path, backbone):
    run = tiny.trainer(
        tmp_path,
        distill_coef=1.0,
        value_backbone=backbone,
        per_device_train_batch_size=32,
        num_generations=8,
        max_steps=15,
        max_completion_length=8,
        train_dataset=tiny.prompts(200),
    )
    run.train()
    rewards = tiny.history(run, "reward")
    assert sum(rewards[:2]) / 2 < 0.55
    assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.25


@pytest.mark.parametrize("learnable", [False, True])
def test_the_gate_warns_when_the_value_is_at_chance(tmp_path, caplog, learnable):
    generator = torch.Generator().manual_seed(0)

    def noise(completion_ids, **kwargs):
        return torch.rand(len(completion_ids), generator=generator)

    with caplog.at_level(logging.WARNING, logger="vgf_llm"):
        tiny.trainer(
            tmp_path,
            tiny.high_tokens if learnable else noise,
            rollout_func=tiny.fixed_rollout,
            value_holdout_ratio=0.5,
            per_device_train_batch_size=32,
            num_generations=8,
            max_steps=8,
            rollout_policy="base",
        ).train()
    assert ("not above chance" in caplog.text) != learnable
