# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""`VGFTrainer` runs as TRL's `GRPOTrainer` does: arguments, data, rewards, logs, evaluation, artefacts."""

import itertools
import json
import math

import pandas as pd
import pytest
import torch
from datasets import IterableDataset
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from tests.trainer import tiny
from vgf_llm import TransportConfig, VGFModel, VGFTrainer
from vgf_llm.models import build_value

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def test_metric_names_are_those_of_grpo(tmp_path):
    def graded(completion_ids, log_metric=None, **kwargs):
        log_metric("graded/rows", len(completion_ids))
        return tiny.high_tokens(completion_ids)

    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    run = tiny.trainer(tmp_path / "vgf", graded, eval_dataset=tiny.prompts(4), **evaluation)
    run.train()
    theirs = GRPOTrainer(
        model=tiny.llama(),
        reward_funcs=graded,
        args=GRPOConfig(
            str(tmp_path / "grpo"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=8,
            num_generations=4,
            max_completion_length=6,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **evaluation,
        ),
        train_dataset=tiny.prompts(),
        eval_dataset=tiny.prompts(4),
        processing_class=tiny.tokenizer(),
    )
    theirs.train()
    for ours_log, theirs_log in zip(run.state.log_history, theirs.state.log_history, strict=True):
        # What belongs to the policy gradient has no meaning here.
        gradient = {"policy_loss", "entropy", "kl"} | {k for k in theirs_log if "clip_ratio/" in k or "sampling/" in k}
        gradient = {key for key in theirs_log if key.removeprefix("eval_") in gradient} | gradient
        assert set(theirs_log) - gradient <= set(ours_log)
        extra = {key.removeprefix("eval_").split("/")[0] for key in set(ours_log) - set(theirs_log)}
        assert extra <= {"value", "transport", "rollout"}
    first = run.state.log_history[0]
    names = ("reward", "reward_std", "frac_reward_zero_std", "rewards/graded/mean", "rewards/graded/std", "num_tokens")
    assert all(math.isfinite(first[name]) for name in (*names, "step_time", "completions/mean_length", "value/loss"))
    assert first["graded/rows"] == 8
    last_eval = next(log for log in run.state.log_history if "eval_reward" in log)
    assert 0 <= last_eval["eval_value/within_prompt_accuracy"] <= 1


VALUES = [
    *itertools.product(("log_ratio",), ("lora", "copy", "path")),
    *itertools.product(("bilinear", "vocab"), ("policy", "lora", "copy", "path")),
]


@pytest.mark.parametrize(("parametrization", "backbone"), VALUES)
def test_every_value_trains_and_loads_again(tmp_path, parametrization, backbone):
    if backbone == "path":
        backbone = tiny.saved_llama(tmp_path / "backbone")
    run = tiny.trainer(tmp_path, value_parametrization=parametrization, value_backbone=backbone)
    before = tiny.value_state(run)
    run.train()
    after = tiny.value_state(run)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(math.isfinite(loss) for loss in tiny.history(run, "loss"))
    run.save_model(str(tmp_path / "saved"))
    loaded = VGFModel.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[5, 6, 7, 8]])
    scores = run.vgf_model.eval().score(ids, torch.ones_like(ids), torch.ones(1, 2))
    assert torch.equal(loaded.score(ids, torch.ones_like(ids), torch.ones(1, 2)).token_scores, scores.token_scores)


@pytest.mark.parametrize(
    "settings",
    [
        {"value_loss": "bernoulli"},
        {"value_parametrization": "vocab", "value_loss": "pairwise"},
        {"rollout_policy": "transport"},
        {"rollout_policy": "base"},
        {"value_parametrization": "bilinear", "rollout_policy": "transport", "num_base_generations": 1},
        {"rollout_policy": "value", "value_parametrization": "log_ratio"},
        {"rollout_policy": "value", "value_parametrization": "log_ratio", "value_backbone": "copy"},
        {"num_iterations": 2, "steps_per_generation": 2},
        {"mask_truncated_completions": True, "max_completion_length": 12},
        {"gradient_checkpointing": True},
        {"value_holdout_ratio": 0.0, "replay_ratio": 0.0},
        {"distill_coef": 1.0, "gradient_checkpointing": True},
        {"distill_coef": 1.0, "value_learning_rate": 1e-3, "value_parametrization": "bilinear"},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "value_loss": "pairwise"},
        {"per_device_train_batch_size": 7, "num_generations": 7},
        {"num_generations_eval": 2, "reward_weights": [2.0]},
    ],
    ids=str,
)
def test_settings_run(tmp_path, settings):
    run = tiny.trainer(tmp_path, tiny.mostly_high, **settings)
    run.train()
    assert run.state.global_step == 3
    assert all(math.isfinite(loss) for loss in tiny.history(run, "loss"))


def test_learning_rates_of_value_and_policy(tmp_path):
    run = tiny.trainer(tmp_path, distill_coef=1.0, learning_rate=1e-3, value_learning_rate=1e-2, peft_config=LORA)
    names = {id(parameter): name for name, parameter in run.vgf_model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in run.create_optimizer().param_groups for p in group["params"]}
    assert set(rates) == set(tiny.value_state(run))
    assert all(rate == (1e-2 if ".value." in name else 1e-3) for name, rate in rates.items())


@pytest.mark.parametrize(
    ("rewards", "value_loss", "resolved", "reward_kind"),
    [
        (tiny.mostly_high, "auto", "bernoulli", "bernoulli"),
        (tiny.high_tokens, "auto", "regression", "regression"),
        (tiny.mostly_high, "pairwise", "pairwise", "regression"),
    ],
)
def test_transport_reads_scores_as_the_loss_fits_them(tmp_path, rewards, value_loss, resolved, reward_kind):
    run = tiny.trainer(tmp_path, rewards, value_parametrization="vocab", value_loss=value_loss, max_steps=1)
    run.train()
    assert (run.objective.kind, run.vgf_model.value.reward_kind) == (resolved, reward_kind)


def test_a_second_training_counts_its_own_steps_and_samples(tmp_path):
    calls = []

    def reward(completion_ids, **kwargs):
        calls.append(len(completion_ids))
        return tiny.high_tokens(completion_ids)

    run = tiny.trainer(tmp_path, reward, rollout_fraction=0.67)
    run.train()
    assert len(calls) == 2
    run.train()
    assert len(calls) == 4
    assert run.state.global_step == 3


def test_what_evaluation_measures_carries_its_prefix_and_stays_there(tmp_path):
    run = tiny.trainer(tmp_path, eval_dataset=tiny.prompts(4))
    other = run.predict(tiny.prompts(3)).metrics
    own = run.evaluate(metric_key_prefix="mine")
    assert {"test_reward", "test_loss"} <= set(other) and "eval_reward" not in other
    assert {"mine_reward", "mine_loss", "mine_completions/mean_length"} <= set(own) and "reward" not in own
    run.train()
    assert not any(name.startswith(("mine", "test")) for log in run.state.log_history[1:] for name in log)


class BrokenOnce:
    """A reward that fails in evaluation once."""

    __name__ = "broken_once"

    def __init__(self):
        self.fails = True

    def __call__(self, completion_ids, **kwargs):
        if self.fails:
            self.fails = False
            raise RuntimeError("no answer")
        return tiny.high_tokens(completion_ids)


def test_training_goes_on_after_an_evaluation_that_failed(tmp_path):
    run = tiny.trainer(tmp_path, BrokenOnce(), eval_dataset=tiny.prompts(4))
    with pytest.raises(RuntimeError, match="no answer"):
        run.evaluate()
    run.train()
    assert len(tiny.history(run, "reward")) == 3 and not tiny.history(run, "eval_reward")


def test_a_model_with_a_value_is_trained_as_what_it_is(tmp_path):
    value = build_value("vocab", width=32, vocab_size=tiny.VOCAB)
    transport = TransportConfig(transport_steps=4, step_size=0.5)
    model = VGFModel(tiny.llama(), value, transport=transport)
    run = tiny.trainer(tmp_path, tiny.mostly_high, model=model)
    run.train()
    assert run.objective.kind == "bernoulli" and value.reward_kind == "bernoulli"
    assert run.schedule.samples_from == "base"
    assert run.args.transport == run.vgf_model.transport == transport
    own = tiny.trainer(tmp_path, tiny.mostly_high, model=model, step_size=0.25)
    assert own.vgf_model.transport is own.args.transport and own.args.transport.step_size == 0.25
    with pytest.raises(ValueError, match=r"`value_parametrization` is 'bilinear', but the VGFModel .* 'vocab'"):
        tiny.trainer(tmp_path, model=model, value_parametrization="bilinear", value_backbone="policy")
    with pytest.raises(ValueError, match="'likelihood' does not fit a value of the kind 'vocab'"):
        tiny.trainer(tmp_path, model=model, value_loss="likelihood")
    with pytest.raises(ValueError, match="`rollout_policy='value'`"):
        tiny.trainer(tmp_path, model=model, rollout_policy="value")


@pytest.mark.parametrize(
    ("config", "settings", "kind", "message"),
    [
        (
            IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
            {},
            TypeError,
            "IA3Config",
        ),
        (AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10), {}, TypeError, "AdaLora"),
        (LORA, {"value_backbone": "copy"}, ValueError, "no effect"),
        (LORA, {"value_parametrization": "sequence", "value_backbone": "copy"}, ValueError, "no effect"),
    ],
)
def test_a_peft_config_that_nothing_would_use_is_refused(tmp_path, config, settings, kind, message):
    with pytest.raises(kind, match=f"`peft_config`.*{message}"):
        tiny.trainer(tmp_path, peft_config=config, **settings)


def test_generation_settings_end_and_shape_completions(tmp_path):
    ends = [9, 11, 13, 15, 17]
    run = tiny.trainer(
        tmp_path, generation_kwargs={"eos_token_id": ends, "min_new_tokens": 1}, max_completion_length=20, max_steps=1
    )
    run.train()
    rows = [ids.tolist() for group in run.rounds.fresh for ids in group.completion_ids]
    assert any(ids[-1] in ends for ids in rows)
    assert all(token not in ends for ids in rows for token in ids[:-1])
    with pytest.raises(ValueError, match=r"`generation_kwargs\['typical_p'\]`.*learn the sampler"):
        tiny.trainer(tmp_path, generation_kwargs={"typical_p": 0.5})


def test_conversations(tmp_path):
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(completion[0]["content"])) for completion in completions]

    rows = tiny.prompts(8)
    rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    run = tiny.trainer(tmp_path, reward, train_dataset=rows, processing_class=tiny.tokenizer(chat=True))
    run.train()
    prompt, completion = seen[0]
    assert prompt[0]["role"] == "user"
    assert completion[0]["role"] == "assistant"
    assert isinstance(completion[0]["content"], str)


def classifier(directory):
    settings = LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(settings).save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return str(directory)


def test_rewards_of_every_kind(tmp_path):
    path = classifier(tmp_path / "judge")
    module = AutoModelForSequenceClassification.from_pretrained(path)
    calls = []

    def plain(prompts, completions, completion_ids, index, trainer_state, log_extra, log_metric, **kwargs):
        calls.append((len(prompts), index, trainer_state.global_step))
        log_extra("shouted", [text.upper() for text in completions])
        return tiny.high_tokens(completion_ids)

    async def waited(completion_ids, **kwargs):
        return [float(len(ids)) for ids in completion_ids]

    def sometimes(completion_ids, **kwargs):
        return [None if row % 4 == 3 else 1.0 for row in range(len(completion_ids))]

    run = tiny.trainer(
        tmp_path,
        [path, module, plain, waited, sometimes],
        reward_weights=[0.1, 0.2, 1.0, 0.5, 2.0],
        reward_processing_classes=[None, tiny.tokenizer(), None, None, None],
    )
    run.train()
    log = run.state.log_history[0]
    means = [log[f"rewards/{name}/mean"] for name in ("plain", "waited", "sometimes")]
    judged = [log[key] for key in log if key == "rewards/judge/mean"]
    assert len(judged) == 1
    assert means[2] == 1.0
    assert [step for _, _, step in calls] == [0, 1, 2]
    assert all(count == 8 and len(set(index)) == 2 for count, index, _ in calls)
    assert len(run._logs["extra"]["shouted"]) == 8


def test_total_reward_is_the_weighted_sum_without_none(tmp_path):
    def one(completions, **kwargs):
        return [1.0] * len(completions)

    def half_none(completions, **kwargs):
        return [None if row % 2 else 3.0 for row in range(len(completions))]

    run = tiny.trainer(tmp_path, [one, half_none], reward_weights=[1.0, 2.0], max_steps=1)
    run.train()
    assert tiny.history(run, "reward") == [pytest.approx(4.0)]  # half of the rows get 1 + 6, half get 1


def test_completions_are_shown_with_who_sampled_them(tmp_path, capsys, monkeypatch):
    sent = tiny.fake_wandb(monkeypatch)
    settings = {"log_completions": True, "num_completions_to_print": 2, "max_steps": 1}
    run = tiny.trainer(tmp_path, num_base_generations=1, **settings)
    run.train()
    run.args.report_to = ["wandb"]  # not before: TRL's timers ask for a wandb that was there when they were imported
    run.log({})
    out = capsys.readouterr().out
    assert "Prompt" in out and "sampler" in out
    table = sent[0]["completions"]
    assert list(table["sampler"]) == ["base", "value", "value", "value"] * 2
    assert {"step", "prompt", "completion", "high_tokens", "advantage"} <= set(table)
    written = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert list(written["sampler"]) == list(table["sampler"])
    # Nobody knows who a function sampled from.
    other = tiny.trainer(tmp_path / "function", rollout_func=tiny.fixed_rollout, **settings)
    other.train()
    assert "sampler" not in pd.read_parquet(tmp_path / "function" / "completions" / "completions_00001.parquet")


class Recorder(TrainerCallback):
    def __init__(self):
        self.events = []

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(("step", state.global_step))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.events.append(("evaluate", metrics["eval_reward"]))

    def on_save(self, args, state, control, **kwargs):
        self.events.append(("save", (args.output_dir, state.global_step)))


def test_callbacks_evaluation_and_model_card(tmp_path):
    recorder = Recorder()
    run = tiny.trainer(
        tmp_path,
        eval_dataset=tiny.prompts(5),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        max_steps=4,
        callbacks=[recorder],
        metric_for_best_model="eval_reward",
        load_best_model_at_end=True,
    )
    run.train()
    assert [name for name, _ in recorder.events].count("step") == 4
    assert [name for name, _ in recorder.events].count("evaluate") == 2
    assert [step for name, step in recorder.events if name == "save"] == [(str(tmp_path), 2), (str(tmp_path), 4)]
    best = run.state.best_model_checkpoint
    assert best in (str(tmp_path / "checkpoint-2"), str(tmp_path / "checkpoint-4"))
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["best_model_checkpoint"] == best
    card = (tmp_path / "README.md").read_text()
    assert "VGF" in card
    assert "2604.14265" in card
    assert "vgf" in card.split("---")[1]


def test_several_evaluation_sets(tmp_path):
    sets = {"short": tiny.prompts(2), "long": tiny.prompts(6)}
    run = tiny.trainer(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=1, max_steps=1)
    run.train()
    assert len(tiny.history(run, "eval_short_loss")) == len(tiny.history(run, "eval_long_loss")) == 1
    assert len(tiny.history(run, "eval_short_reward")) == len(tiny.history(run, "eval_long_reward")) == 1


def test_evaluation_before_training(tmp_path):
    metrics = tiny.trainer(tmp_path, eval_dataset=tiny.prompts(3)).evaluate()
    assert math.isfinite(metrics["eval_loss"])
    # An untrained log-ratio is zero everywhere: every pair is a tie.
    assert metrics["eval_value/within_prompt_accuracy"] == pytest.approx(0.5, abs=0.1)


def stream(count=40):
    return IterableDataset.from_generator(lambda: iter([dict(row) for row in tiny.prompts(count)]))


def test_streams_keep_the_completions_of_a_prompt_together(tmp_path):
    batches = []

    def reward(prompts, completion_ids, **kwargs):
        batches.append(list(prompts))
        return tiny.high_tokens(completion_ids)

    run = tiny.trainer(
        tmp_path, reward, train_dataset=stream(), eval_dataset=stream(4), eval_strategy="steps", eval_steps=3
    )
    run.train()
    assert len(batches) == 5
    for batch in batches:
        assert [len(set(batch[start : start + 4])) for start in range(0, 8, 4)] == [1, 1]


def test_a_path_as_model(tmp_path):
    path = tiny.saved_llama(tmp_path / "base")
    args = tiny.config(tmp_path / "out", save_strategy="steps", save_steps=3)
    run = VGFTrainer(path, tiny.high_tokens, args, tiny.prompts())
    run.train()
    assert run.vgf_model.vgf_config.base_model_name_or_path == path
    # Checkpoints name a frozen policy with an origin; what a user saves holds it.
    assert not (tmp_path / "out" / "checkpoint-3" / "model.safetensors").exists()
    run.save_model()
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), tiny.llama().parameters(), strict=True))
    written = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file() and "checkpoint-" not in str(file)}
    assert not {name for name in written if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle"))}


@pytest.mark.parametrize("distill_coef", [0.0, 1.0])
@pytest.mark.parametrize("given", ["peft_config", "default", "mine"])
def test_peft(tmp_path, distill_coef, given):
    model = tiny.llama()
    if given != "peft_config":
        model = get_peft_model(model, LORA, adapter_name=given)
    run = tiny.trainer(
        tmp_path,
        model=model,
        peft_config=LORA if given == "peft_config" else None,
        distill_coef=distill_coef,
        save_strategy="steps",
        save_steps=2,
    )
    base = {n: p.clone() for n, p in run.vgf_model.policy.named_parameters() if ".lora_" not in n}
    adapters = {n: p.clone() for n, p in run.vgf_model.policy.named_parameters() if ".lora_" in n}
    run.train()
    state = dict(run.vgf_model.policy.named_parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.items())
    moved = {name for name, tensor in adapters.items() if not torch.equal(tensor, state[name])}
    assert any(".value." in name for name in moved)
    assert any(".value." not in name for name in moved) == (distill_coef > 0)
    again = tiny.trainer(
        tmp_path,
        model=get_peft_model(tiny.llama(), LORA, adapter_name=given) if given != "peft_config" else tiny.llama(),
        peft_config=LORA if given == "peft_config" else None,
        distill_coef=distill_coef,
        max_steps=2,
    )
    again._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    if distill_coef > 0:
        run.save_model(str(tmp_path / "saved"))
        policy = PeftModel.from_pretrained(tiny.llama(), str(tmp_path / "saved"))
        assert any(float(p.abs().sum()) > 0 for n, p in policy.named_parameters() if "lora_B" in n)


EVERY_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("modules", [["nope"], ["q_proj", "nope"], "nope", r".*\.nope"])
def test_target_modules_that_match_nothing_are_named(tmp_path, modules):
    with pytest.raises(ValueError, match=r"`value_lora_target_modules` has .*nope.*named \[.*'q_proj'"):
        tiny.trainer(tmp_path, value_lora_target_modules=modules)


@pytest.mark.parametrize(
    ("modules", "wanted"),
    [
        (["q_proj", "mlp.up_proj"], {"q_proj", "up_proj"}),
        (r".*\.(q|v)_proj", {"q_proj", "v_proj"}),
        ("all-linear", EVERY_LINEAR),
        (None, EVERY_LINEAR),
    ],
)
def test_target_modules_are_peft_s(tmp_path, modules, wanted):
    run = tiny.trainer(tmp_path, value_lora_target_modules=modules)
    adapted = {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in run.model.named_modules() if ".lora_A" in name
    }
    assert adapted == wanted
