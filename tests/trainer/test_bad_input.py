# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a user may get wrong: a clear error, before anything is sampled wherever that can be known."""

import math

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from trl import GRPOConfig

from tests.trainer import tiny
from tests.unit.reward_models.classifiers import classifier
from vgf_llm import VGFModel, VGFTrainer


@pytest.fixture
def unsampled(monkeypatch):
    monkeypatch.setattr(VGFModel, "generate", lambda *args, **kwargs: pytest.fail("sampled before the error"))


def needs(answer, **kwargs):
    return [0.0] * len(answer)


LONG = Dataset.from_dict({"prompt": ["w1 " * 60] * 2})
EMPTY = Dataset.from_dict({"prompt": []})
BAD_INPUT = {
    "empty dataset": ({"train_dataset": EMPTY}, ValueError, "`train_dataset` is empty"),
    "no prompt": (
        {"train_dataset": Dataset.from_dict({"question": ["w1"]})},
        ValueError,
        "no column `prompt`; its columns are .'question'",
    ),
    "prompts that are numbers": (
        {"train_dataset": Dataset.from_dict({"prompt": [1]})},
        TypeError,
        "must be a text or a list of messages",
    ),
    "several datasets": (
        {"train_dataset": DatasetDict(train=tiny.prompts(4), test=tiny.prompts(4))},
        TypeError,
        r"`train_dataset` is a DatasetDict with the parts \['train', 'test'\]",
    ),
    "a missing prompt": (
        {"train_dataset": Dataset.from_dict({"prompt": ["w1", "w2", None]})},
        TypeError,
        "Row 2 of `train_dataset`: `prompt` must be a text",
    ),
    "a long prompt behind many": (
        {"train_dataset": Dataset.from_dict({"prompt": ["w1"] * 1500 + ["w1 " * 60]})},
        ValueError,
        "`train_dataset`: A prompt has 60 tokens.*Row 1500",
    ),
    "an answer in place of a prompt": (
        {"train_dataset": Dataset.from_dict({"answer": ["#### 4"], "question": ["How many?"]})},
        ValueError,
        r"rename_column\('question', 'prompt'\)",
    ),
    "empty eval dataset": ({"eval_dataset": EMPTY}, ValueError, "`eval_dataset` is empty"),
    "one empty eval dataset": ({"eval_dataset": {"a": EMPTY}}, ValueError, r"`eval_dataset\['a'\]` is empty"),
    "batch not divisible": (
        {"per_device_train_batch_size": 6},
        ValueError,
        r"`num_generations` .4.*Valid values of `.*: \[4, 8, 12\]",
    ),
    "one generation": ({"num_generations": 1}, ValueError, "`num_generations` must be an integer >= 2 .*, got 1"),
    "compiled recomputation": (
        {"torch_compile": True, "torch_compile_backend": "aot_eager", "gradient_checkpointing": True},
        ValueError,
        "`torch_compile=True` cannot trace the recomputation of `gradient_checkpointing=True`",
    ),
    "negative steps": ({"transport_steps": -1}, ValueError, "`transport_steps` must be an integer >= 0"),
    "step size not a number": ({"step_size": math.nan}, ValueError, "`step_size` must be a number > 0 and finite"),
    "infinite step size": ({"step_size": math.inf}, ValueError, "`step_size` must be a number > 0 and finite"),
    "long prompts": ({"train_dataset": LONG}, ValueError, "`train_dataset`: A prompt has 60 tokens, .*context of 64"),
    "long eval prompts": ({"eval_dataset": LONG}, ValueError, "`eval_dataset`: A prompt has 60 tokens"),
    "no room for prompts": ({"max_completion_length": 64}, ValueError, "leaves no room for a prompt"),
    "no eos": ({"processing_class": tiny.tokenizer(eos_token=None)}, ValueError, "has no `eos_token`"),
    "small model vocabulary": (
        {"model": tiny.llama(vocab_size=20)},
        ValueError,
        r"12 token.s. with ids from 20 on.*resize_token_embeddings.32",
    ),
    "no tokenizer": ({"processing_class": 1}, TypeError, "`processing_class` must be a tokenizer, got int"),
    "no rewards": ({"reward_funcs": []}, ValueError, "No reward source"),
    "weights": ({"reward_weights": [1.0, 2.0]}, ValueError, "reward weights .2. must match .* reward functions .1."),
    "a classifier of two labels": (
        {"reward_funcs": classifier(2), "reward_processing_classes": tiny.tokenizer()},
        ValueError,
        r"`reward_funcs\[0\]` .* has 2 labels",
    ),
    "missing column": ({"reward_funcs": needs}, ValueError, r"needs the column.s. \['answer'\]"),
    "messages without a template": (
        {"train_dataset": Dataset.from_dict({"prompt": [[{"role": "user", "content": "w1"}]] * 2})},
        ValueError,
        "has no chat template",
    ),
    "a value of states": ({"value_parametrization": "v_head"}, ValueError, "'v_head'. was removed"),
    "a setting that is gone": ({"td_lambda": 0.5}, TypeError, "`td_lambda` is no longer a setting"),
    "the value in vLLM": ({"use_vllm": True, "distill_coef": 1.0}, ValueError, "`rollout_policy='base'`"),
    "continuous batching": (
        {"use_transformers_continuous_batching": True},
        ValueError,
        "`use_transformers_continuous_batching=True` is not supported",
    ),
    "not a model": ({"model": 3}, TypeError, "`model` must be a path or hub id"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_refused_before_training(tmp_path, unsampled, case):
    settings, error, message = BAD_INPUT[case]
    settings = dict(settings)
    rewards = settings.pop("reward_funcs", tiny.high_tokens)
    with pytest.raises(error, match=message):
        tiny.trainer(tmp_path, rewards, **settings)


def test_missing_dataset_and_foreign_arguments(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is required, got None"):
        VGFTrainer(tiny.llama(), tiny.high_tokens, tiny.config(tmp_path), processing_class=tiny.tokenizer())
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match=r"`args` must be a VGFConfig, got GRPOConfig; VGFConfig\.from_grpo"):
        VGFTrainer(tiny.llama(), tiny.high_tokens, args, tiny.prompts(), processing_class=tiny.tokenizer())


def test_unwritable_output_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"`output_dir` .* cannot be written to"):
        tiny.trainer(tmp_path / "file" / "out")


def test_value_model_of_another_vocabulary(tmp_path):
    tiny.llama(vocab_size=40).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="`value_model` has 40 logits, the policy 32"):
        tiny.trainer(tmp_path, value_backbone=str(tmp_path / "other"))


def too_few(completions, **kwargs):
    return [1.0]


def broken(prompts, **kwargs):
    raise KeyError("answer")


def infinite(completions, **kwargs):
    return [math.inf] * len(completions)


def percent(completions, **kwargs):
    return [float(100 * (row % 2)) for row in range(len(completions))]


BAD_REWARDS = [
    (too_few, ValueError, "'too_few' returned 1 rewards, but 8 were expected", {}),
    (broken, RuntimeError, r"'broken' raised KeyError: 'answer'.*First prompt of the batch of 8: 'w\d+", {}),
    (infinite, ValueError, "'infinite' returned inf for prompt 'w", {}),
    (percent, ValueError, "rewards from 0 to 100 arrived. Set `value_loss` to 'pairwise'", {"value_loss": "bernoulli"}),
]


@pytest.mark.parametrize(("reward", "error", "message", "settings"), BAD_REWARDS, ids=lambda value: str(value)[:40])
def test_bad_rewards(tmp_path, reward, error, message, settings):
    with pytest.raises(error, match=message):
        tiny.trainer(tmp_path, reward, rollout_func=tiny.fixed_rollout, **settings).train()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"prompt_ids": [[5]] * 8}, r"'completion_ids'.*\['completion_ids'\] are missing"),
        ({"prompt_ids": [[5]] * 8, "completion_ids": [[5]] * 2}, "returned 2 completion_ids for 8 prompts"),
        ({"prompt_ids": [[]] * 8, "completion_ids": [[5]] * 8}, "`prompt_ids` is empty"),
        (
            {"prompt_ids": [[5]] * 8, "completion_ids": [[5, 6]] * 8, "ref_logprobs": [[-1.0]] * 8},
            "returned 1 ref_logprobs for a completion of 2 tokens, of the prompt 'w",
        ),
        (
            {"prompt_ids": [[5]] * 8, "completion_ids": [[5]] * 8, "ref_logprobs": [[-1.0]]},
            "returned 1 ref_logprobs for 8 prompts",
        ),
    ],
    ids=str,
)
def test_bad_rollouts(tmp_path, output, message):
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, rollout_func=lambda prompts, trainer: output).train()


def test_a_long_prompt_deep_in_a_stream_is_shown(tmp_path):
    rows = Dataset.from_dict({"prompt": ["w1", "w2 " * 60]}).to_iterable_dataset()
    run = tiny.trainer(tmp_path, train_dataset=rows)
    with pytest.raises(ValueError, match=r"A prompt has 60 tokens.*'w2 w2"):
        run.train()


def test_a_missing_prompt_deep_in_a_stream_is_shown(tmp_path):
    rows = IterableDataset.from_generator(lambda: ({"prompt": prompt} for prompt in ("w1", None)))
    run = tiny.trainer(tmp_path, train_dataset=rows)
    with pytest.raises(TypeError, match=r"Row \d of the batch: `prompt` must be a text .* got None"):
        run.train()
