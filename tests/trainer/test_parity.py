# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""docs/trl_parity.md against TRL's source and against what `VGFConfig` and `VGFTrainer` do."""

import ast
import inspect
import os
import re
import textwrap
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.trainer import tiny
from vgf_llm import VGFConfig, VGFTrainer
from vgf_llm.trainer.config.tables import IGNORED

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "trl_parity.md").read_text(encoding="utf-8")
SAME, IGNORES, DIFFERENT, REFUSED = VERDICTS = ("same", "accepted and ignored", "different", "refused")
_ROW = re.compile(r"^\| (.+?) \| (same|accepted and ignored|different|refused) \| (.*?) ?\|$", re.MULTILINE)


def section(title: str) -> str:
    """The text below a heading of the page."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> dict[str, tuple[str, str]]:
    """By name, the verdict of a section's tables and what is said of it; no name stands twice."""
    found: dict[str, tuple[str, str]] = {}
    for names, verdict, remark in _ROW.findall(section(title)):
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in found, f"`{name}` stands twice under {title!r}"
            found[name] = (verdict, remark)
    return found


ARGUMENTS = rows("Constructor arguments")
FIELDS = rows("Settings")
METRICS = rows("Metrics")
ATTRIBUTES = rows("Attributes")


def of(table: dict[str, tuple[str, str]], *verdicts: str) -> list[str]:
    return sorted(name for name, (verdict, _) in table.items() if verdict in verdicts)


def test_the_counts_of_the_page_are_those_of_its_tables() -> None:
    stated = {
        title: [int(number) for number in numbers.split("|")]
        for title, numbers in re.findall(r"^\| ([A-Z][\w ]+) \| ([\d |]+) \|$", PAGE, re.MULTILINE)
    }
    counted = {}
    tables = [
        ("Constructor arguments", ARGUMENTS),
        ("Settings", FIELDS),
        ("Metrics", METRICS),
        ("Attributes", ATTRIBUTES),
    ]
    for title, table in tables:
        verdicts = Counter(verdict for verdict, _ in table.values())
        counted[title] = [verdicts[verdict] for verdict in VERDICTS]
    assert stated == counted


def test_whatever_is_not_the_same_says_why() -> None:
    for table in (ARGUMENTS, FIELDS, METRICS, ATTRIBUTES):
        assert not [name for name, (verdict, remark) in table.items() if verdict in (DIFFERENT, REFUSED) and not remark]


# Arguments of the constructor


def test_the_arguments_are_trls_in_trls_order() -> None:
    theirs = list(inspect.signature(GRPOTrainer.__init__).parameters)[1:]
    assert list(ARGUMENTS) == theirs
    assert list(inspect.signature(VGFTrainer.__init__).parameters)[1:] == theirs


@pytest.mark.parametrize("name", of(ARGUMENTS, REFUSED))
def test_refused_arguments_are_refused_at_construction(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is not supported"):
        VGFTrainer(tiny.llama(), tiny.high_tokens, tiny.config(tmp_path), tiny.prompts(), **{name: [print]})


# Settings

CPU: dict[str, Any] = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none"}
# A value beside the default of every setting that is no bool.
VALUES: dict[str, Any] = {
    "output_dir": "elsewhere", "per_device_train_batch_size": 16, "num_train_epochs": 2.5, "max_steps": 7,
    "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}, "warmup_steps": 0.1,
    "optim": "adafactor", "optim_args": "a=1", "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.99,
    "adam_epsilon": 1e-6, "optim_target_modules": ["q_proj"], "gradient_accumulation_steps": 4, "max_grad_norm": 0.2,
    "label_smoothing_factor": 0.1, "tf32": False, "activation_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_checkpointing_kwargs": {"use_reentrant": False}, "torch_compile_backend": "inductor",
    "torch_compile_mode": "default", "liger_kernel_config": {"rope": True}, "neftune_noise_alpha": 5.0,
    "torch_empty_cache_steps": 10, "logging_strategy": "epoch", "logging_steps": 1.0,
    "include_num_input_tokens_seen": "all", "log_level": "info", "log_level_replica": "error", "report_to": ["none"],
    "run_name": "a run", "project": "other", "trackio_space_id": "me/space", "trackio_bucket_id": "me/bucket",
    "trackio_static_space_id": "me/static", "eval_strategy": "epoch", "eval_steps": 10.0, "eval_delay": 2.0,
    "per_device_eval_batch_size": 16, "eval_accumulation_steps": 2, "include_for_metrics": ["loss"],
    "save_strategy": "epoch", "save_steps": 0.1, "save_total_limit": 1, "hub_token": "token", "hub_private_repo": True,
    "hub_model_id": "me/model", "hub_strategy": "end", "hub_revision": "main", "metric_for_best_model": "eval_reward",
    "greater_is_better": True, "disable_tqdm": True, "seed": 1, "data_seed": 1,
    "accelerator_config": {"split_batches": True},
    "parallelism_config": ParallelismConfig(cp_size=2), "dataloader_num_workers": 1, "dataloader_prefetch_factor": 2,
    "dataloader_multiprocessing_context": "fork", "label_names": ["labels"], "train_sampling_strategy": "sequential",
    "length_column_name": "len", "ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 10,
    "ddp_broadcast_buffers": True, "ddp_static_graph": True, "ddp_backend": "gloo", "ddp_timeout": 100,
    "fsdp": "full_shard", "fsdp_config": {"min_num_params": 1}, "deepspeed": {"zero_optimization": {"stage": 1}},
    "debug": "underflow_overflow", "resume_from_checkpoint": "checkpoint-1", "local_rank": 0, "bf16": True,
    "activation_checkpointing": True,
    "model_init_kwargs": {"dtype": "float32"}, "router_aux_loss_coef": 0.1, "num_generations": 4,
    "num_generations_eval": 2, "max_completion_length": 256, "pad_to_multiple_of": 8, "generation_batch_size": 64,
    "steps_per_generation": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.1,
    "generation_kwargs": {"min_new_tokens": 2}, "chat_template_kwargs": {"enable_thinking": False},
    "repetition_penalty": 1.1, "cache_implementation": "static", "vllm_mode": "server",
    "vllm_model_impl": "transformers", "vllm_structured_outputs_regex": "a+", "vllm_server_base_url": "http://host:1",
    "vllm_server_host": "host", "vllm_server_port": 9000, "vllm_server_timeout": 10.0, "vllm_group_port": 9001,
    "vllm_gpu_memory_utilization": 0.5, "vllm_max_model_length": 1024, "vllm_tensor_parallel_size": 2, "beta": 0.04,
    "num_iterations": 2, "epsilon": 0.1, "delta": 2.0, "epsilon_high": 0.28, "sapo_temperature_neg": 2.0,
    "sapo_temperature_pos": 2.0, "vespo_k_pos": 1.0, "vespo_lambda_pos": 1.0, "vespo_k_neg": 1.0,
    "vespo_lambda_neg": 1.0, "importance_sampling_level": "sequence", "reward_weights": [1.0, 0.5],
    "multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "batch", "loss_type": "dr_grpo",
    "ref_model_mixup_alpha": 0.5, "ref_model_sync_steps": 64, "top_entropy_quantile": 0.2, "entropy_coef": 0.01,
    "entropy_coef_min": 0.1, "entropy_coef_max": 0.5, "entropy_coef_delta": 0.01, "entropy_target": 0.3,
    "max_tool_calling_iterations": 3, "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0, "vllm_importance_sampling_clip_min": 0.5,
    "off_policy_mask_threshold": 0.5, "num_completions_to_print": 2, "log_completions_hub_repo": "me/completions",
    "transformers_continuous_batching_config": {"max_memory_percent": 0.4}, "vllm_importance_sampling_cap": 2.0,
}  # fmt: skip
# Settings that another one needs beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "load_best_model_at_end": {"eval_strategy": "steps", "save_strategy": "steps"},
    "log_completions_hub_repo": {"log_completions": True},
}


def value_of(name: str) -> Any:
    default = GRPOConfig.__dataclass_fields__[name].default
    return not default if isinstance(default, bool) else VALUES[name]


def built(kind: type, name: str) -> tuple[Any, list[str]]:
    """What a setting becomes in a configuration, or the error's text, and what was warned of."""
    settings = {**CPU, **BESIDE.get(name, {}), name: value_of(name)}
    # transformers announces fsdp and others to accelerate in the environment.
    with warnings.catch_warnings(record=True) as caught, mock.patch.dict(os.environ):
        warnings.simplefilter("always")
        try:
            result = getattr(kind(**settings), name)
        except (ValueError, ImportError) as error:
            result = f"{type(error).__name__}: {error}"
    return result, [str(entry.message) for entry in caught]


def test_every_setting_has_a_verdict() -> None:
    theirs = GRPOConfig.__dataclass_fields__
    assert FIELDS.keys() == theirs.keys()
    assert VALUES.keys() == {name for name, item in theirs.items() if not isinstance(item.default, bool)}


@pytest.mark.parametrize("name", of(FIELDS, SAME))
def test_settings_that_are_the_same(name: str) -> None:
    theirs, their_warnings = built(GRPOConfig, name)
    ours, our_warnings = built(VGFConfig, name)
    assert ours == theirs and our_warnings == their_warnings
    # `ddp_backend` needs a process group: its error is the same one.
    assert theirs != GRPOConfig.__dataclass_fields__[name].default


def test_ignored_settings_are_those_of_the_table() -> None:
    assert set(of(FIELDS, IGNORES)) == IGNORED.keys() & GRPOConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", of(FIELDS, IGNORES))
def test_ignored_settings_are_named_in_one_warning(name: str) -> None:
    result, warned = built(VGFConfig, name)
    assert result == GRPOConfig.__dataclass_fields__[name].default
    (own,) = [text for text in warned if text.startswith("VGFConfig: ")]
    assert re.findall(r"`(\w+)`=", own) == [name] and f"({IGNORED[name]})" in own


@pytest.mark.parametrize("name", of(FIELDS, REFUSED))
def test_refused_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}"):
        VGFConfig(**{**CPU, name: value_of(name)})


# What a trainer has and logs

SETTINGS: dict[str, Any] = {
    "temperature": 0.9, "top_p": 0.95, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "num_iterations": 2,
    "num_generations_eval": 2, "pad_to_multiple_of": 2, "shuffle_dataset": False, "mask_truncated_completions": True,
    "log_completions": True, "log_unique_prompts": True, "num_completions_to_print": 0, "reward_weights": [2.0, 0.5],
    "chat_template_kwargs": {"a": 1},
}  # fmt: skip


def constant(completions: list[Any], log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
    log_extra("shouted", [text.upper() for text in completions])
    log_metric("longest", max(map(len, completions)))
    return [1.0] * len(completions)


class Reads(TrainerCallback):
    """What callbacks of other people's scripts do: they read the trainer's table and add metrics of their own."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.seen: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(len(self.trainer._logs["completion"]))
        self.trainer._metrics["train"]["of_a_callback"].append(float(state.global_step))
        self.trainer.reward_weights[1] = 0.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> VGFTrainer:
    """Two rounds, with the completions logged."""
    reads = Reads()
    reward_funcs = [tiny.high_tokens, constant]
    result = tiny.trainer(tmp_path_factory.mktemp("run"), reward_funcs, callbacks=[reads], max_steps=4, **SETTINGS)
    reads.trainer = result
    result.train()
    assert reads.seen == [8] * 4
    return result


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    """TRL's trainer of the same settings."""
    args = tiny.config("out", **SETTINGS)
    shared = {name: getattr(args, name) for name in GRPOConfig.__dataclass_fields__ if name not in IGNORED}
    shared |= {"steps_per_generation": None, "output_dir": str(tmp_path_factory.mktemp("theirs"))}
    return GRPOTrainer(
        tiny.llama(), [tiny.high_tokens, constant], GRPOConfig(**shared), tiny.prompts(), None, tiny.tokenizer()
    )


def logged(trainer: VGFTrainer) -> set[str]:
    return {name for entry in trainer.state.log_history for name in entry}


def test_every_metric_that_trl_logs_has_a_verdict() -> None:
    source = inspect.getsource(inspect.getmodule(GRPOTrainer))
    assert METRICS.keys() == set(re.findall(r'_metrics\[(?:mode|"train")\]\[f?"([^"]+)"\]', source))


def test_metrics_that_are_the_same_are_logged_and_others_are_not(run: VGFTrainer) -> None:
    names = {name.replace("{reward_func_name}", "high_tokens"): name for name in METRICS}
    assert {written for name, written in names.items() if name in logged(run)} == set(of(METRICS, SAME))
    assert {"longest", "of_a_callback", "learning_rate", "loss", "grad_norm", "epoch"} <= logged(run)


def test_metrics_named_in_their_place_are_logged(run: VGFTrainer) -> None:
    for name, (verdict, remark) in METRICS.items():
        instead = re.findall(r"`((?:value|transport)/\w+)`", remark) if verdict == DIFFERENT else []
        assert set(instead) <= logged(run), name


def attributes_of_trl() -> set[str]:
    """The names that the constructor of TRL's trainer sets on itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(GRPOTrainer.__init__)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_every_attribute_that_trl_sets_has_a_verdict() -> None:
    every = attributes_of_trl()
    public = {name for name in every if not name.startswith("_")}
    assert public <= ATTRIBUTES.keys() <= every


@pytest.mark.parametrize("name", of(ATTRIBUTES, SAME))
def test_attributes_that_are_the_same(name: str, run: VGFTrainer, theirs: GRPOTrainer) -> None:
    assert hasattr(run, name)
    ours, other = getattr(run, name), getattr(theirs, name, None)
    if name == "_metrics":
        assert ours.keys() == other.keys()
    elif name == "_logs":
        assert ours.keys() == other.keys()
        assert {column: len(ours[column]) for column in ("images", "prompt", "completion", "advantages")} == {
            "images": 0, "prompt": 8, "completion": 8, "advantages": 8
        }  # fmt: skip
        assert ours["rewards"].keys() == {"high_tokens", "constant"} and len(ours["extra"]["shouted"]) == 8
    elif name == "reward_weights":
        assert other.tolist() == [2.0, 0.5] and ours.tolist() == [2.0, 0.0]  # `Reads` has changed it
    else:
        assert type(ours) is type(other) and ours == other


@pytest.mark.parametrize("name", of(ATTRIBUTES, DIFFERENT))
def test_attributes_that_are_not_there_are_said_not_to_be(name: str, run: VGFTrainer) -> None:
    assert hasattr(run, name) != ATTRIBUTES[name][1].startswith("not there")


def test_reward_weights_that_a_callback_changes_act(run: VGFTrainer) -> None:
    rewards, shares = tiny.history(run, "reward"), tiny.history(run, "rewards/high_tokens/mean")
    # The first round is weighted as configured; the second, after two steps, without the second function.
    assert rewards[0] == pytest.approx(2 * shares[0] + 0.5)
    assert rewards[1] == pytest.approx(2 * shares[1])


def test_advantages_are_rewards_minus_the_mean_of_their_prompts(run: VGFTrainer) -> None:
    rewards = 2 * torch.tensor(list(run._logs["rewards"]["high_tokens"])).view(2, 4)
    expected = rewards - rewards.mean(dim=1, keepdim=True)
    assert list(run._logs["advantages"]) == pytest.approx(expected.flatten().tolist())


def test_logged_completions_are_files_as_trls(run: VGFTrainer) -> None:
    folder = Path(run.args.output_dir) / "completions"
    assert sorted(path.name for path in folder.iterdir()) == [f"completions_{step:05d}.parquet" for step in range(1, 5)]
    frame = pd.read_parquet(folder / "completions_00004.parquet")
    logged = ["high_tokens", "constant", "sampler", "shouted", "advantage"]
    assert list(frame) == ["step", "prompt", "completion", *logged]
    assert list(frame["completion"]) == list(run._logs["completion"])


def test_settings_of_a_model_that_is_loaded_already_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.trainer(tmp_path, model_init_kwargs={"dtype": "float32"}, peft_config=LoraConfig(task_type="CAUSAL_LM"))
    assert "`args.model_init_kwargs` does not apply to `model`, which is loaded already." in caplog.text
