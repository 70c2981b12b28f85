# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains the base model of the embedded task from scratch on partly wrong solutions, in minutes on 2 cores.

The weights in `recipes/embedded_math/base` come from

    python -m recipes.embedded_math.train_base --output_dir recipes/embedded_math/base
"""

import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    set_seed,
)

from recipes.embedded_math.problems import make_corpus
from recipes.embedded_math.tokenizer import build_tokenizer

IGNORE_INDEX = -100


@dataclass
class TrainBaseArguments:
    """Settings of the run; the defaults gave the shipped weights."""

    output_dir: str = field(metadata={"help": "Folder for the model and its tokenizer."})
    num_examples: int = field(default=80_000, metadata={"help": "Corpus size, one solution a problem, each seen once."})
    batch_size: int = field(default=32, metadata={"help": "Sequences a step."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak of the cosine schedule."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps of linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay."})
    num_threads: int = field(default=2, metadata={"help": "CPU threads; another number rounds differently."})
    seed: int = field(default=0, metadata={"help": "Seed of the corpus, the weights and the order."})


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Builds the untrained base, a Llama with 0.9 million parameters, for the vocabulary of `tokenizer`.

    Example:
        >>> model = build_model(build_tokenizer())
        >>> sum(p.numel() for p in model.parameters()) < 1_000_000
        True
    """
    special_ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        **special_ids,
    )
    model = LlamaForCausalLM(config)
    # without it `generate` stops at 20 new tokens; the longest solution has 51
    model.generation_config = GenerationConfig(do_sample=True, max_new_tokens=64, **special_ids)
    return model


def make_batches(
    tokenizer: PreTrainedTokenizerBase, num_examples: int, batch_size: int, seed: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokenizes the corpus into batches of similar length, padded at the right, with labels on the solution only.

    Returns:
        Pairs of `input_ids` and `labels`, `[B, T]` each.
    """
    examples = []
    for row in make_corpus(num_examples, seed):
        prompt_ids = tokenizer(row["question"] + "\n").input_ids
        answer_ids = [*tokenizer(row["answer"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        examples.append((prompt_ids + answer_ids, [IGNORE_INDEX] * len(prompt_ids) + answer_ids))
    random.Random(seed).shuffle(examples)
    examples.sort(key=lambda example: len(example[0]))
    batches = []
    for start in range(0, num_examples, batch_size):
        ids, labels = zip(*examples[start : start + batch_size], strict=True)
        batches.append((_pad(ids, tokenizer.pad_token_id), _pad(labels, IGNORE_INDEX)))
    return batches


def _pad(rows: tuple[list[int], ...], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def train(model: LlamaForCausalLM, batches: list[tuple[torch.Tensor, torch.Tensor]], args: TrainBaseArguments) -> None:
    """Fits `model` to `batches`, each seen once in a seeded order, with AdamW and a cosine schedule."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=args.weight_decay
    )
    schedule = LambdaLR(
        optimizer,
        lambda step: min((step + 1) / args.warmup_steps, 0.5 * (1 + math.cos(math.pi * step / len(batches)))),
    )
    model.train()
    progress = tqdm(random.Random(args.seed).sample(batches, len(batches)), desc="base")
    for input_ids, labels in progress:
        # causal attention and right padding: real tokens never see the padding, so no mask is needed
        logits = model(input_ids=input_ids[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def main(args: TrainBaseArguments) -> None:
    """Trains the base and writes it with its tokenizer to `args.output_dir`."""
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    batches = make_batches(tokenizer, args.num_examples, args.batch_size, args.seed)
    started = time.perf_counter()
    train(model, batches, args)
    print(f"trained {model.num_parameters():,} parameters in {time.perf_counter() - started:.0f} s")
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


if __name__ == "__main__":
    (parsed,) = HfArgumentParser(TrainBaseArguments).parse_args_into_dataclasses()
    main(parsed)
