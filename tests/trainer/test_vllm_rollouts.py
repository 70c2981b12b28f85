# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Rollouts through TRL's vLLM engine, with a stand-in for it: what it is given, and when weights are sent to it."""

import inspect

import pytest
from peft import LoraConfig, get_peft_model

from tests.trainer import tiny
from vgf_llm._compat import vllm_generation_class

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
PARAMETERS = set(inspect.signature(vllm_generation_class().__init__).parameters) - {"self"}


class FakeEngine:
    """Completions of the prompt's own first token, and a record of the calls."""

    def __init__(self, **kwargs):
        assert set(kwargs) <= PARAMETERS
        self.model = kwargs["model"]
        self.syncs = 0
        self.calls = []

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        # As in server mode: every prompt stands `num_generations` times in a row, and each block is one request.
        blocks = [prompts[start : start + num_generations] for start in range(0, len(prompts), num_generations)]
        assert all(block == [block[0]] * num_generations for block in blocks)
        self.calls.append((len(prompts), num_generations))
        completion_ids = [[block[0][0], 4 + i, tiny.EOS] for block in blocks for i in range(num_generations)]
        return prompts, completion_ids, None, None


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch):
    monkeypatch.setattr("vgf_llm.trainer.rollout.vllm_generation_class", lambda: FakeEngine)


def trained(tmp_path, **settings):
    run = tiny.trainer(tmp_path, use_vllm=True, **settings)
    run.train()
    return run


def test_a_frozen_policy_is_never_sent(tmp_path):
    run = trained(tmp_path, eval_dataset=tiny.prompts(4), eval_strategy="steps", eval_steps=3, num_generations_eval=2)
    engine = run.vllm_generation
    assert engine.syncs == 0
    assert engine.calls == [(8, 4)] * 3 + [(8, 2)]


@pytest.mark.parametrize("peft", [False, True])
def test_a_distilled_policy_is_sent_once_a_step(tmp_path, peft):
    # Two rounds are sampled within each optimizer step.
    run = trained(
        tmp_path,
        distill_coef=1.0,
        peft_config=LORA if peft else None,
        gradient_accumulation_steps=2,
        steps_per_generation=1,
    )
    assert len(run.vllm_generation.calls) == 6
    assert run.vllm_generation.syncs == 3


def test_a_frozen_adapter_is_sent_once(tmp_path):
    assert trained(tmp_path, model=get_peft_model(tiny.llama(), LORA)).vllm_generation.syncs == 1


@pytest.mark.parametrize("distill_coef", [0.0, 1.0])
def test_the_engine_sees_the_names_of_the_checkpoint(tmp_path, distill_coef):
    """The value's LoRA adapter renames the policy's parameters, and is none of vLLM's business."""
    run = trained(tmp_path, distill_coef=distill_coef)
    seen = dict(run.vllm_generation.model.named_parameters())
    expected = dict(tiny.llama().named_parameters())
    assert {name: p.shape for name, p in seen.items()} == {name: p.shape for name, p in expected.items()}
    assert run.vllm_generation.model.config is run.vgf_model.config


def test_rollout_functions_find_the_engine(tmp_path):
    def rollout(prompts, trainer):
        ids = trainer._tokenizer(prompts)["input_ids"]
        completion_ids = trainer.vllm_generation.generate(ids, None, trainer.num_generations)[1]
        return {"prompt_ids": ids, "completion_ids": completion_ids}

    run = trained(tmp_path, rollout_func=rollout, distill_coef=1.0)
    assert run.vllm_generation.syncs == 3
    assert tiny.trainer(tmp_path).vllm_generation is None
