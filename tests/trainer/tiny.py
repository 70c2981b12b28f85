# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A tiny language model, its tokenizer, prompts, a reward and a trainer over them, for tests of whole training runs."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vgf_llm import VGFConfig, VGFTrainer

VOCAB = 32
EOS = 2
# Tokens from here on earn the reward.
HIGH = 18
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"


def tokenizer(chat: bool = False, **overrides: Any) -> PreTrainedTokenizerFast:
    """One token per word."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCAB - 4))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    result = PreTrainedTokenizerFast(tokenizer_object=core, **{**special, **overrides})
    if chat:
        result.chat_template = CHAT_TEMPLATE
    return result


def llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A random model; the same seed gives the same weights."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))


def saved_llama(directory: Path, chat: bool = False) -> str:
    """A folder with model and tokenizer."""
    llama().save_pretrained(directory)
    tokenizer(chat).save_pretrained(directory)
    return str(directory)


def prompts(count: int = 40) -> Dataset:
    """Different prompts of two and three words, with a further column."""
    texts = [f"w{i % 26} w{i // 26 % 26}" + (" w1" if i % 2 else "") for i in range(count)]
    return Dataset.from_dict({"prompt": texts, "index": list(range(count))})


def high_tokens(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """The share of rewarded tokens."""
    return [sum(token >= HIGH for token in ids) / len(ids) for ids in completion_ids]


def mostly_high(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Whether most tokens are rewarded."""
    return [float(share > 0.4) for share in high_tokens(completion_ids)]


def fixed_rollout(prompts: list[Any], trainer: VGFTrainer) -> dict[str, Any]:
    """Completions that depend on the prompt and on their place among its completions, and on nothing else."""
    completion_ids = []
    count = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    for row, prompt in enumerate(prompts, start=trainer.accelerator.process_index * len(prompts)):
        digest = hashlib.blake2b(f"{prompt}:{row % count}".encode(), digest_size=9).digest()
        length = 2 + digest[8] % 6
        completion_ids.append([4 + byte % (VOCAB - 4) for byte in digest[:length]] + [EOS])
    return {"prompt_ids": trainer._tokenizer(prompts)["input_ids"], "completion_ids": completion_ids}


def config(output_dir: str | Path, **overrides: Any) -> VGFConfig:
    """Three steps of two prompts with four completions each."""
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "value_holdout_ratio": 0.2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return VGFConfig(**{**settings, **overrides})


def trainer(
    output_dir: str | Path,
    reward_funcs: Any = high_tokens,
    *,
    model: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    processing_class: Any = None,
    peft_config: Any = None,
    callbacks: list[Any] | None = None,
    rollout_func: Callable[..., Any] | None = None,
    reward_processing_classes: Any = None,
    **settings: Any,
) -> VGFTrainer:
    """A trainer; `settings` go to the configuration."""
    return VGFTrainer(
        model=llama() if model is None else model,
        reward_funcs=reward_funcs,
        args=config(output_dir, **settings),
        train_dataset=prompts() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer() if processing_class is None else processing_class,
        reward_processing_classes=reward_processing_classes,
        peft_config=peft_config,
        callbacks=callbacks,
        rollout_func=rollout_func,
    )


def history(run: VGFTrainer, name: str) -> list[float]:
    """The logged values of a metric."""
    return [entry[name] for entry in run.state.log_history if name in entry]


def value_state(run: VGFTrainer) -> dict[str, torch.Tensor]:
    """Copies of the parameters that train."""
    return {n: p.detach().clone() for n, p in run.vgf_model.named_parameters() if p.requires_grad}


def policy_state(run: VGFTrainer) -> dict[str, torch.Tensor]:
    """Copies of the policy's parameters, without the value's adapter."""
    policy = run.vgf_model.policy
    return {n: p.detach().clone() for n, p in policy.named_parameters() if ".value." not in n}
