# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Ten public GRPO scripts with the two names replaced: settings as published, rewards of the same shape, a tiny model.

Left out of the settings are names that TRL 1.16 and transformers 5 have removed (`max_prompt_length`, `vllm_device`,
`overwrite_output_dir`; `warmup_ratio` is `warmup_steps` below 1), and what asks for a GPU or the hub (`bf16`, `tf32`,
`push_to_hub`, `report_to`).
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig
from trl.rewards import think_format_reward

from tests.trainer import tiny
from tests.trainer.engines import stand_in
from vgf_llm import VGFConfig, VGFTrainer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "trl_parity.md").read_text(encoding="utf-8")
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [
    *SPECIAL,
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "####",
    *"012+=",
    "system",
    "user",
    "assistant",
    "Add",
]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


# Data and rewards


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    result = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    result.chat_template = tiny.CHAT_TEMPLATE
    return result


def chats() -> Dataset:
    """Sums of two digits as a conversation, with the columns that the scripts give their reward functions."""
    pairs = [(a, b) for a in range(3) for b in range(3 - a)]
    prompts = [[{"role": "system", "content": "Add"}, {"role": "user", "content": f"{a} + {b} ="}] for a, b in pairs]
    answers = [str(a + b) for a, b in pairs]
    # One answer cannot be read, as happens in the data sets of these scripts.
    return Dataset.from_dict({"prompt": prompts, "answer": answers, "solution": ["", *answers[1:]]})


def countdown() -> Dataset:
    """Texts that already open the thinking, as mini-r1 builds them."""
    nums = [[a, b] for a in range(3) for b in range(3)]
    texts = [f"user Add {a} + {b} = assistant <think>" for a, b in nums]
    return Dataset.from_dict({"prompt": texts, "target": [a + b for a, b in nums], "nums": nums})


def contents(completions: list[Any]) -> list[str]:
    return [completion[0]["content"] for completion in completions]


def last_number(text: str) -> str | None:
    found = re.findall(r"\d+", text)
    return found[-1] if found else None


def accuracy(completions: list[Any], solution: list[str], **kwargs: Any) -> list[float | None]:
    """`None` for a solution that cannot be read."""
    pairs = zip(contents(completions), solution, strict=True)
    return [float(last_number(text) == gold) if gold else None for text, gold in pairs]


def answers_after_thinking(completions: list[Any], **kwargs: Any) -> list[float]:
    pattern = re.compile(r"^<think>.*?</think>\s*<answer>.*?</answer>$", re.DOTALL)
    return [float(pattern.match(text) is not None) for text in contents(completions)]


def some_tags(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.25 * sum(text.count(tag) == 1 for tag in WORDS[4:8]) for text in contents(completions)]


def countdown_format(completions: list[str], target: list[int], **kwargs: Any) -> list[float]:
    pattern = re.compile(r"^<think>[^<]*</think>.*<answer>", re.DOTALL)
    return [float(pattern.match(f"<think>{text}") is not None) for text in completions]


def countdown_equation(completions: list[str], target: list[int], nums: list[list[int]], **kwargs: Any) -> list[float]:
    """A number of the task behind the answer's tag."""
    rewards = []
    for text, goal, numbers in zip(completions, target, nums, strict=True):
        answer = last_number(text.rpartition("<answer>")[2])
        rewards.append(float(answer is not None and int(answer) in (goal, *numbers)))
    return rewards


def xml_count(completions: list[Any], **kwargs: Any) -> list[float]:
    """An eighth for every tag, less a little for what stands behind the last one."""
    return [
        0.125 * sum(text.count(tag) == 1 for tag in WORDS[4:8]) - 0.001 * len(text.rpartition("</answer>")[2])
        for text in contents(completions)
    ]


def soft_format(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.5 * bool(re.search(r"<think>.*</answer>", text)) for text in contents(completions)]


def strict_format(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.5 * value for value in answers_after_thinking(completions)]


def is_integer(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.5 * bool(re.search(r"\d$", text)) for text in contents(completions)]


def correct(prompts: list[Any], completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    return [2.0 * (last_number(text) == gold) for text, gold in zip(contents(completions), answer, strict=True)]


def marked_answer(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
    return [float(f"#### {gold}" in text) for text, gold in zip(contents(completions), answer, strict=True)]


# The scripts


@dataclass(frozen=True)
class Script:
    """One script: `named` is what its warning names, `refused` what has to be taken out."""

    published: dict[str, Any]
    # Sizes for a tiny model and one process, in the published proportions.
    smaller: dict[str, Any]
    reward_funcs: list[Callable[..., Any]]
    named: tuple[str, ...] = ("learning_rate",)
    refused: tuple[str, ...] = ()
    data: Callable[[], Dataset] = chats
    lora: dict[str, Any] | None = None


OPEN_R1 = {
    "use_vllm": True, "vllm_gpu_memory_utilization": 0.7, "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False}, "hub_strategy": "every_save", "log_completions": True,
    "log_level": "info", "logging_first_step": True, "logging_strategy": "steps", "max_steps": -1,
    "num_train_epochs": 1, "seed": 42, "warmup_steps": 0.1,
}  # fmt: skip
GSM8K = {
    "learning_rate": 5e-6, "adam_beta1": 0.9, "adam_beta2": 0.99, "weight_decay": 0.1, "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine", "logging_steps": 1, "num_train_epochs": 1, "max_grad_norm": 0.1,
}  # fmt: skip
FIVE_REWARDS = [xml_count, soft_format, strict_format, is_integer, correct]

SCRIPTS = {
    "open-r1, OpenR1-Zero-7B-Math": Script(
        OPEN_R1 | {
            "beta": 0.0, "do_eval": False, "eval_strategy": "no", "gradient_accumulation_steps": 16,
            "generation_batch_size": 512, "learning_rate": 1e-6, "logging_steps": 1,
            "lr_scheduler_type": "constant_with_warmup", "mask_truncated_completions": True, "max_grad_norm": 0.2,
            "max_completion_length": 8192, "num_generations": 16, "num_iterations": 1,
            "per_device_train_batch_size": 4, "reward_weights": [1.0, 0.25, 0.25], "save_strategy": "steps",
            "save_steps": 0.1, "save_total_limit": 1, "sync_ref_model": False, "temperature": 1.0, "epsilon": 0.2,
        },
        {"generation_batch_size": 32, "gradient_accumulation_steps": 4},
        [accuracy, answers_after_thinking, some_tags],
    ),
    "open-r1, Qwen2.5-1.5B-Instruct demo": Script(
        OPEN_R1 | {
            "do_eval": False, "gradient_accumulation_steps": 4, "learning_rate": 2e-5, "logging_steps": 1,
            "lr_scheduler_type": "cosine", "max_completion_length": 1024, "num_generations": 16,
            "per_device_eval_batch_size": 16, "per_device_train_batch_size": 16, "save_strategy": "epoch",
            "save_total_limit": 1,
        },
        {"gradient_accumulation_steps": 2},
        [accuracy, answers_after_thinking],
    ),
    # Seven processes: groups of seven fit the batch of all of them, and not the 16 rows of one.
    "open-r1, Qwen2.5-Math-7B simple-rl": Script(
        OPEN_R1 | {
            "learning_rate": 1.5e-6, "reward_weights": [1.0, 0.5], "do_eval": True, "eval_strategy": "steps",
            "eval_steps": 100, "gradient_accumulation_steps": 8, "logging_steps": 5, "lr_scheduler_type": "cosine",
            "max_completion_length": 1024, "num_generations": 7, "per_device_eval_batch_size": 16,
            "per_device_train_batch_size": 16, "save_strategy": "epoch",
        },
        {
            "gradient_accumulation_steps": 7, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 14,
            "eval_steps": 1,
        },
        [accuracy, answers_after_thinking],
    ),
    "mini-r1, countdown": Script(
        {
            "max_steps": 400, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8,
            "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "learning_rate": 1e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "beta": 0.04,
            "max_completion_length": 768, "num_generations": 8, "use_vllm": True, "vllm_gpu_memory_utilization": 0.5,
            "logging_strategy": "steps", "logging_steps": 2, "save_strategy": "steps", "save_steps": 25, "seed": 42,
            "hub_strategy": "every_save",
        },
        {},
        [countdown_format, countdown_equation],
        ("beta", "learning_rate"),
        data=countdown,
    ),
    "TRL, gspo.py": Script(
        {
            "learning_rate": 1e-5, "max_completion_length": 1024, "log_completions": True,
            "per_device_train_batch_size": 8, "num_generations": 8, "importance_sampling_level": "sequence",
            "epsilon": 3e-4, "epsilon_high": 4e-4, "beta": 0.0, "loss_type": "grpo", "gradient_accumulation_steps": 2,
            "steps_per_generation": 8,
        },
        {"steps_per_generation": 4},
        [think_format_reward, accuracy],
        ("epsilon", "epsilon_high", "importance_sampling_level", "learning_rate", "loss_type"),
        lora={"target_modules": ["q_proj", "v_proj"]},
    ),
    "TRL, grpo_trl_lora_qlora.ipynb": Script(
        {
            "learning_rate": 2e-5, "max_steps": 500, "per_device_train_batch_size": 8, "max_completion_length": 256,
            "num_generations": 8, "optim": "paged_adamw_8bit", "use_liger_kernel": True,
            "gradient_checkpointing": True, "logging_steps": 10, "log_completions": False,
        },
        {"optim": "adamw_torch"},  # the published one needs a GPU
        [think_format_reward, accuracy],
        refused=("use_liger_kernel",),
        lora={"r": 32, "lora_alpha": 32, "target_modules": LINEAR},
    ),
    # Written for a TRL that counted prompts: 4 completions are no multiple of 16, and TRL 1.16 refuses them.
    "willccbb, grpo_demo.py": Script(
        GSM8K | {
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "num_generations": 16,
            "max_completion_length": 786, "save_steps": 100, "log_on_each_node": False,
        },
        {"gradient_accumulation_steps": 16},
        FIVE_REWARDS,
        lora={"r": 16, "lora_alpha": 64, "target_modules": LINEAR, "lora_dropout": 0.05},
    ),
    # Unsloth raises the batch size to the number of generations.
    "Unsloth, Llama3.1-8B": Script(
        GSM8K | {
            "use_vllm": True, "optim": "paged_adamw_8bit", "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1, "num_generations": 6, "max_completion_length": 200, "max_steps": 250,
            "save_steps": 250,
        },
        {"per_device_train_batch_size": 6, "optim": "adamw_torch"},
        FIVE_REWARDS,
        lora={"r": 32, "lora_alpha": 32, "target_modules": LINEAR},
    ),
    "ms-swift, grpo.sh": Script(
        {
            "max_completion_length": 2048, "num_train_epochs": 1, "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8, "learning_rate": 1e-6, "gradient_accumulation_steps": 2,
            "eval_steps": 100, "save_steps": 100, "save_total_limit": 2, "logging_steps": 5, "warmup_steps": 0.05,
            "dataloader_num_workers": 4, "num_generations": 8, "temperature": 0.7,
        },
        {},
        [accuracy, some_tags],
    ),
    # 1024 prompts of 5 completions a round, a step for each quarter of them, 128 completions a pass.
    "verl, GSM8K": Script(
        {
            "per_device_train_batch_size": 128, "gradient_accumulation_steps": 10, "generation_batch_size": 5120,
            "num_generations": 5, "max_completion_length": 512, "learning_rate": 1e-6, "beta": 0.001,
            "gradient_checkpointing": True, "num_train_epochs": 15, "use_vllm": True,
            "vllm_gpu_memory_utilization": 0.6, "save_strategy": "no",
        },
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 5, "generation_batch_size": 20},
        [marked_answer],
        ("beta", "learning_rate"),
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}


def settings_of(script: Script, output_dir: Path) -> dict[str, Any]:
    """The settings of a tiny run of two rounds, and what is refused among them."""
    settings = {**script.published, **script.smaller, **CPU, "output_dir": str(output_dir), "max_completion_length": 12}
    theirs = GRPOConfig(**settings)  # TRL takes them
    return {**settings, "max_steps": 2 * theirs.steps_per_generation // theirs.gradient_accumulation_steps}


def warned(build: Callable[[], VGFConfig]) -> tuple[VGFConfig, list[str]]:
    """A configuration, and the settings that its warning names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        args = build()
    own = [str(entry.message) for entry in caught if str(entry.message).startswith("VGFConfig: ")]
    assert len(own) <= 1
    return args, sorted(re.findall(r"`(\w+)`=", "".join(own)))


@EVERY
def test_the_script_trains(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "VOCAB", len(WORDS))
    stand_in(monkeypatch)
    settings = settings_of(script, tmp_path)
    for name in script.refused:
        with pytest.raises(ValueError, match=f"`{name}=True`"):
            VGFConfig(**settings)
        del settings[name]
    args, named = warned(lambda: VGFConfig(**settings))
    assert named == sorted(script.named)
    data = script.data()
    run = VGFTrainer(
        model=tiny.llama(),
        reward_funcs=script.reward_funcs,
        args=args,
        train_dataset=data,
        eval_dataset=data.select(range(2)),
        processing_class=tokenizer(),
        peft_config=None if script.lora is None else LoraConfig(task_type="CAUSAL_LM", **script.lora),
    )
    value, policy = tiny.value_state(run), tiny.policy_state(run)
    run.train()
    assert run._step == 2 * run.schedule.round_steps
    assert set(run._logs["rewards"]) == {func.__name__ for func in script.reward_funcs}
    assert len(run._logs["completion"]) == args.generation_batch_size
    changed = [name for name, before in value.items() if not torch.equal(before, tiny.value_state(run)[name])]
    assert changed
    assert all(torch.equal(before, tiny.policy_state(run)[name]) for name, before in policy.items())


def test_trl_refuses_three_of_the_published_batch_sizes_on_one_process(tmp_path: Path) -> None:
    refused = set()
    for name, script in SCRIPTS.items():
        try:
            GRPOConfig(**{**script.published, **CPU, "output_dir": str(tmp_path)})
        except ValueError as error:
            assert "divisible" in str(error)
            refused.add(name)
    assert refused == {"open-r1, Qwen2.5-Math-7B simple-rl", "willccbb, grpo_demo.py", "Unsloth, Llama3.1-8B"}


@EVERY
def test_a_configuration_of_trl_is_carried_over_as_the_constructor_reads_it(script: Script, tmp_path: Path) -> None:
    settings = settings_of(script, tmp_path)
    for name in script.refused:
        del settings[name]
    args, named = warned(lambda: VGFConfig(**settings))
    theirs = GRPOConfig(**settings)
    carried, also_named = warned(lambda: VGFConfig.from_grpo(theirs))
    # A rate that is TRL's default cannot be told from one that was not set.
    default = settings["learning_rate"] == 1e-6
    assert also_named == [name for name in named if not (default and name == "learning_rate")]
    differing = {"accelerator_config", *({"learning_rate"} if default else ())}
    for name in VGFConfig.__dataclass_fields__.keys() - differing:
        assert getattr(carried, name) == getattr(args, name), name


def test_the_page_states_what_each_script_warned() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]*) \| ([^|]*) \|$", PAGE.split("\n## Ten public scripts\n")[1], re.MULTILINE
    )
    stated = {name: (re.findall(r"`(\w+)`", named), re.findall(r"`(\w+)", others)) for name, named, others in rows[1:]}
    expected = {name: (sorted(script.named), [*script.refused]) for name, script in SCRIPTS.items()}
    assert stated == expected
