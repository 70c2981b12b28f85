# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Trains the base model of the harder task from scratch on solutions with slips, in half an hour on one core.

The weights in `recipes/embedded_chains/base` come from

    python -m recipes.embedded_chains.train_base --output_dir recipes/embedded_chains/base
"""

from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser, LlamaForCausalLM, PreTrainedTokenizerBase, set_seed

from recipes import small_base
from recipes.embedded_chains.problems import MAX_NUMBER, make_corpus
from recipes.embedded_math.tokenizer import build_tokenizer


@dataclass
class TrainBaseArguments(small_base.TrainBaseArguments):
    """Settings of the run; the defaults gave the shipped weights."""

    num_examples: int = field(default=30_000, metadata={"help": "Corpus size; each example is seen once."})
    num_threads: int = field(default=1, metadata={"help": "CPU threads; another number rounds differently."})


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Builds the untrained base, a Llama with 0.9 million parameters, for the vocabulary of `tokenizer`."""
    # the longest solution has 112 tokens
    return small_base.build_llama(
        tokenizer, hidden_size=128, intermediate_size=384, num_hidden_layers=4, max_new_tokens=128
    )


def main(args: TrainBaseArguments) -> None:
    """Trains the base and writes it with its tokenizer to `args.output_dir`."""
    torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    tokenizer = build_tokenizer(corpus=make_corpus, max_number=MAX_NUMBER)
    corpus = make_corpus(args.num_examples, args.seed)
    pairs = ((row["question"] + "\n", row["answer"]) for row in corpus)
    batches = small_base.make_batches(tokenizer, pairs, args.batch_size, args.seed)
    small_base.train_and_save(build_model(tokenizer), tokenizer, batches, args)


if __name__ == "__main__":
    (parsed,) = HfArgumentParser(TrainBaseArguments).parse_args_into_dataclasses()
    main(parsed)
