# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains the base of the harder task on long solutions with slips, from the base of `embedded_math`, on one core.

The weights in `recipes/embedded_chains/base` come from

    python -m recipes.embedded_chains.train_base --output_dir first
    python -m recipes.embedded_chains.train_base --start first --seed 1 --num_examples 48000 \
        --output_dir recipes/embedded_chains/base

The words are those of `embedded_math`, whose base knows the arithmetic; from scratch 30,000 examples of this task gave
a base that solves 2 % of its problems.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, HfArgumentParser, LlamaForCausalLM, set_seed

from recipes import embedded_math, small_base
from recipes.embedded_chains.problems import make_corpus
from recipes.embedded_math.tokenizer import build_tokenizer

MAX_NEW_TOKENS = 128  # the longest solution has 112 tokens


@dataclass
class TrainBaseArguments(small_base.TrainBaseArguments):
    """Settings of the run; the defaults gave the shipped weights."""

    start: str = field(default=str(embedded_math.BASE_DIR), metadata={"help": "Folder of the model to start from."})
    num_examples: int = field(default=40_000, metadata={"help": "Corpus size; each example is seen once."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Peak of the cosine schedule."})
    num_threads: int = field(default=1, metadata={"help": "CPU threads; another number rounds differently."})


def load_start(folder: str) -> LlamaForCausalLM:
    """Loads the model that the training starts from, with this task's length of a solution.

    Example:
        >>> load_start(str(embedded_math.BASE_DIR)).generation_config.max_new_tokens
        128
    """
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.max_new_tokens = MAX_NEW_TOKENS
    return model


def main(args: TrainBaseArguments) -> None:
    """Trains the base and writes it with its tokenizer to `args.output_dir`."""
    torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    model, tokenizer = load_start(args.start), build_tokenizer()
    pairs = ((row["question"] + "\n", row["answer"]) for row in make_corpus(args.num_examples, args.seed))
    batches = small_base.make_batches(tokenizer, pairs, args.batch_size, args.seed)
    small_base.train_and_save(model, tokenizer, batches, args)


if __name__ == "__main__":
    (parsed,) = HfArgumentParser(TrainBaseArguments).parse_args_into_dataclasses()
    main(parsed)
