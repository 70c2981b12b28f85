# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the embedded tasks share: a one-token-a-word tokenizer, a small Llama, and its training from scratch."""

import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

IGNORE_INDEX = -100
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass
class TrainBaseArguments:
    """Settings of the run; the defaults gave the shipped weights."""

    output_dir: str = field(metadata={"help": "Folder for the model and its tokenizer."})
    num_examples: int = field(default=80_000, metadata={"help": "Corpus size; each example is seen once."})
    batch_size: int = field(default=32, metadata={"help": "Sequences a step."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak of the cosine schedule."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps of linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay."})
    num_threads: int = field(default=2, metadata={"help": "CPU threads; another number rounds differently."})
    seed: int = field(default=0, metadata={"help": "Seed of the corpus, the weights and the order."})


def build_word_tokenizer(
    words: Sequence[str], pieces: str, chat_template: str, max_length: int
) -> PreTrainedTokenizerFast:
    """Builds a tokenizer with one token a piece, which puts `<s>` in front of a text.

    Args:
        words: The vocabulary after the special tokens, in order.
        pieces: Regular expression of the pieces that a text is cut into; joined without separators, they are the text.
        chat_template: Jinja template of conversations.
        max_length: The context length of the model it is for, in tokens.

    Returns:
        A tokenizer with left padding.

    Example:
        >>> tokenizer = build_word_tokenizer(["a", " b"], " ?[a-z]", "", max_length=8)
        >>> tokenizer("a b").input_ids, tokenizer.decode([4, 5])
        ([1, 4, 5], 'a b')
    """
    token_ids = {token: index for index, token in enumerate([*SPECIAL_TOKENS.values(), *words])}
    tokenizer = Tokenizer(WordLevel(token_ids, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, token_ids[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
        **SPECIAL_TOKENS,
    )


def build_llama(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    max_new_tokens: int,
) -> LlamaForCausalLM:
    """Builds an untrained Llama with tied embeddings and four heads for the vocabulary of `tokenizer`.

    Args:
        tokenizer: Gives the vocabulary, the special tokens and the context length.
        hidden_size: Width D.
        intermediate_size: Width of the MLPs.
        num_hidden_layers: Layers.
        max_new_tokens: What `generate` stops at by default; without it that is 20.
    """
    special_ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        **special_ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, max_new_tokens=max_new_tokens, **special_ids)
    return model


def make_batches(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]], batch_size: int, seed: int
) -> list[Batch]:
    """Tokenizes prompts with their responses into batches of similar length, padded at the right.

    Args:
        tokenizer: The base's tokenizer.
        pairs: Prompt and response of each example.
        batch_size: Examples a batch.
        seed: Seed of the order among examples of one length.

    Returns:
        Pairs of `input_ids` and `labels`, `[B, T]` each; the labels are the response and its end only.
    """
    examples = []
    for prompt, response in pairs:
        prompt_ids = tokenizer(prompt).input_ids
        response_ids = [*tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        examples.append((prompt_ids + response_ids, [IGNORE_INDEX] * len(prompt_ids) + response_ids))
    random.Random(seed).shuffle(examples)
    examples.sort(key=lambda example: len(example[0]))
    batches = []
    for start in range(0, len(examples), batch_size):
        ids, labels = zip(*examples[start : start + batch_size], strict=True)
        batches.append((_pad(ids, tokenizer.pad_token_id), _pad(labels, IGNORE_INDEX)))
    return batches


def train(model: LlamaForCausalLM, batches: list[Batch], args: TrainBaseArguments) -> None:
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


def train_and_save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, batches: list[Batch], args: TrainBaseArguments
) -> None:
    """Trains `model`, says how long it took, and writes it with its tokenizer to `args.output_dir`."""
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    train(model, batches, args)
    print(f"trained {model.num_parameters():,} parameters in {time.perf_counter() - started:.0f} s")
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def _pad(rows: tuple[list[int], ...], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
