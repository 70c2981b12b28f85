# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains the base model of the review task from scratch on reviews of mixed quality, in minutes on one core.

The weights in `recipes/embedded_preference/base` come from

    python -m recipes.embedded_preference.train_base --output_dir recipes/embedded_preference/base --num_threads 1
"""

from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser, LlamaForCausalLM, PreTrainedTokenizerBase, set_seed

from recipes import small_base
from recipes.embedded_preference.language import make_corpus
from recipes.embedded_preference.tokenizer import build_tokenizer


@dataclass
class TrainBaseArguments(small_base.TrainBaseArguments):
    """Settings of the run; the defaults gave the shipped weights."""

    num_examples: int = field(default=60_000, metadata={"help": "Corpus size; each review is seen once."})
    batch_size: int = field(default=64, metadata={"help": "Sequences a step."})
    num_threads: int = field(default=1, metadata={"help": "CPU threads; another number rounds differently."})


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Builds the untrained base, a Llama with 0.6 million parameters, for the vocabulary of `tokenizer`.

    Example:
        >>> model = build_model(build_tokenizer())
        >>> 500_000 < sum(p.numel() for p in model.parameters()) < 700_000
        True
    """
    return small_base.build_llama(
        tokenizer, hidden_size=128, intermediate_size=320, num_hidden_layers=3, max_new_tokens=32
    )


def main(args: TrainBaseArguments) -> None:
    """Trains the base and writes it with its tokenizer to `args.output_dir`."""
    torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    corpus = make_corpus(args.num_examples, args.seed)
    pairs = zip(corpus["prompt"], corpus["response"], strict=True)
    batches = small_base.make_batches(tokenizer, pairs, args.batch_size, args.seed)
    small_base.train_and_save(model, tokenizer, batches, args)


if __name__ == "__main__":
    (parsed,) = HfArgumentParser(TrainBaseArguments).parse_args_into_dataclasses()
    main(parsed)
