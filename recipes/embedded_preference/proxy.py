# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What the proxy of the review task learns from: samples of the base, and noisy preferences between them by gold."""

import math
import random
from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from recipes.embedded_preference.gold import gold_score
from recipes.embedded_preference.language import make_prompts


@torch.no_grad()
def sample_reviews(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    num_samples: int,
    seed: int,
    rows: int = 512,
) -> list[list[str]]:
    """Samples reviews at temperature 1.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        prompts: P prompts.
        num_samples: N reviews a prompt.
        seed: Seed of the samples.
        rows: Reviews sampled at a time.

    Returns:
        Texts, [P][N].
    """
    torch.manual_seed(seed)
    per_batch = max(rows // num_samples, 1)
    texts: list[str] = []
    for start in range(0, len(prompts), per_batch):
        inputs = tokenizer(list(prompts[start : start + per_batch]), return_tensors="pt", padding=True)
        output = model.generate(
            **inputs.to(model.device),
            do_sample=True,
            top_k=0,
            num_return_sequences=num_samples,
            cache_implementation="static",
            disable_compile=True,
        )
        texts += tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [texts[row * num_samples : (row + 1) * num_samples] for row in range(len(prompts))]


def label_pairs(
    prompts: Sequence[str], reviews: Sequence[Sequence[str]], seed: int, label_temperature: float = 0.5
) -> Dataset:
    """Labels all pairs of reviews of a prompt as a noisy judge of the gold score does (Bradley and Terry 1952).

    The judge prefers a to b with probability sigmoid((gold(a) - gold(b)) / label_temperature). Equal texts are no pair.

    Args:
        prompts: P prompts.
        reviews: Texts, [P][N].
        seed: Seed of the judge.
        label_temperature: Standard deviations of gold in which the judge's odds grow by e.

    Returns:
        A dataset with the columns `prompt`, `chosen` and `rejected`.

    Raises:
        ValueError: `label_temperature` is not positive.

    Example:
        >>> prompt = "ann reviews the cafe , brief , on soup and staff :"
        >>> label_pairs([prompt], [[" the soup felt nice .", " the soup felt odd .", ""]], seed=0).num_rows
        3
    """
    if not label_temperature > 0:
        raise ValueError(f"label_temperature must be positive; got {label_temperature}.")
    rng = random.Random(seed)
    pairs = []
    for prompt, texts in zip(prompts, reviews, strict=True):
        golds = [gold_score(prompt, text) for text in texts]
        for first in range(len(texts)):
            for second in range(first):
                if texts[first] == texts[second]:
                    continue
                odds = math.exp(-(golds[first] - golds[second]) / label_temperature)
                better, worse = (first, second) if rng.random() < 1 / (1 + odds) else (second, first)
                pairs.append({"prompt": prompt, "chosen": texts[better], "rejected": texts[worse]})
    return Dataset.from_list(pairs)


def make_pairs(
    num_prompts: int,
    num_samples: int = 4,
    seed: int = 0,
    split: str = "train",
    label_temperature: float = 0.5,
    model: PreTrainedModel | None = None,
) -> Dataset:
    """Samples reviews of the base and labels their pairs: the preference set of the task.

    Args:
        num_prompts: P prompts of the split.
        num_samples: N reviews a prompt; all their pairs are labelled.
        seed: Seed of prompts, samples and labels.
        split: Split of the prompts.
        label_temperature: See `label_pairs`.
        model: The policy to sample from; the shipped base by default.

    Returns:
        A dataset with the columns `prompt`, `chosen` and `rejected`.
    """
    # Not at the top: the package imports this module.
    from recipes.embedded_preference import BASE_DIR

    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, or there is no pair; got {num_samples}.")
    model = model if model is not None else AutoModelForCausalLM.from_pretrained(BASE_DIR).eval()
    prompts = make_prompts(num_prompts, seed=seed, split=split)
    reviews = sample_reviews(model, AutoTokenizer.from_pretrained(BASE_DIR), prompts, num_samples, seed)
    return label_pairs(prompts, reviews, seed, label_temperature)
