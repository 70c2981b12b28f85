# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains the base model of the embedded task from scratch on partly wrong solutions, in minutes on 2 cores.

The weights in `recipes/embedded_math/base` come from

    python -m recipes.embedded_math.train_base --output_dir recipes/embedded_math/base
"""

import torch
from transformers import HfArgumentParser, LlamaForCausalLM, PreTrainedTokenizerBase, set_seed

from recipes import small_base
from recipes.embedded_math.problems import make_corpus
from recipes.embedded_math.tokenizer import build_tokenizer
from recipes.small_base import IGNORE_INDEX, Batch, TrainBaseArguments

__all__ = ["IGNORE_INDEX", "TrainBaseArguments", "build_model", "main", "make_batches"]


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Builds the untrained base, a Llama with 0.9 million parameters, for the vocabulary of `tokenizer`.

    Example:
        >>> model = build_model(build_tokenizer())
        >>> sum(p.numel() for p in model.parameters()) < 1_000_000
        True
    """
    # the longest solution has 51 tokens
    return small_base.build_llama(
        tokenizer, hidden_size=128, intermediate_size=384, num_hidden_layers=4, max_new_tokens=64
    )


def make_batches(tokenizer: PreTrainedTokenizerBase, num_examples: int, batch_size: int, seed: int) -> list[Batch]:
    """Tokenizes the corpus into batches of similar length, padded at the right, with labels on the solution only.

    Returns:
        Pairs of `input_ids` and `labels`, `[B, T]` each.
    """
    pairs = ((row["question"] + "\n", row["answer"]) for row in make_corpus(num_examples, seed))
    return small_base.make_batches(tokenizer, pairs, batch_size, seed)


def main(args: TrainBaseArguments) -> None:
    """Trains the base and writes it with its tokenizer to `args.output_dir`."""
    torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    batches = make_batches(tokenizer, args.num_examples, args.batch_size, args.seed)
    small_base.train_and_save(model, tokenizer, batches, args)


if __name__ == "__main__":
    (parsed,) = HfArgumentParser(TrainBaseArguments).parse_args_into_dataclasses()
    main(parsed)
