# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Where responses end: whatever ends them, lengths and values know it, and no padding is valued."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    GenerationConfig,
    MaxTimeCriteria,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)

from tests.generation.sequence_values import sequence_model
from tests.layouts import EOS, PAD, VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.generation import VGFGenerateOutput, response_mask, sample
from vgf_llm.models import TransportConfig, VGFModel

LENGTH = 12
HIGH = 30  # tokens from here on end a response where a test says so
KINDS = [("bilinear", "policy"), ("log_ratio", "lora"), ("log_ratio", "copy")]


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return tiny_model("llama")


class AtHighTokens(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids[:, -1] >= HIGH


def letters() -> PreTrainedTokenizerFast:
    """One token for each letter and digit: 11 is "i" and 38 is "9"."""
    vocab = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789."]
    raw = Tokenizer(models.BPE({token: index for index, token in enumerate(vocab)}, []))
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", bos_token="<s>")


# How a call ends responses, and the tokens that end them then.
ENDS: dict[str, tuple[dict[str, Any], set[int]]] = {
    "the model's end token": ({}, {EOS}),
    "several end tokens": ({"eos_token_id": [EOS, *range(HIGH, VOCAB)]}, {EOS, *range(HIGH, VOCAB)}),
    "another end token": ({"eos_token_id": 7}, {7}),
    "a configuration": (
        {"generation_config": GenerationConfig(eos_token_id=list(range(HIGH, VOCAB)), pad_token_id=PAD)},
        set(range(HIGH, VOCAB)),
    ),
    "a criterion": ({"stopping_criteria": [AtHighTokens()]}, {EOS, *range(HIGH, VOCAB)}),
    "a criterion alone": (
        {"stopping_criteria": StoppingCriteriaList([AtHighTokens()]), "eos_token_id": None},
        set(range(HIGH, VOCAB)),
    ),
    "stop strings": ({"stop_strings": ["i", "9"], "tokenizer": letters()}, {EOS, 11, 38}),
}


def generate(model: VGFModel, seed: int = 1, **kwargs: Any) -> VGFGenerateOutput:
    options = {"do_sample": True, "max_new_tokens": LENGTH, "num_particles": 6, "min_candidate_prob": 0.0, "top_k": 0}
    torch.manual_seed(seed)
    return model.generate(*prompts(), return_dict_in_generate=True, **{**options, **kwargs})


def expected_ends(tokens: Tensor, ends: set[int]) -> tuple[list[int], list[bool]]:
    rows = tokens.tolist()
    places = [next((i for i, token in enumerate(row) if token in ends), None) for row in rows]
    return [len(row) if at is None else at + 1 for row, at in zip(rows, places, strict=True)], [
        at is not None for at in places
    ]


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_values_end_where_responses_do(
    base: PreTrainedModel, kind: tuple[str, str], steps: int, how: str
) -> None:
    settings, ends = ENDS[how]
    model = vgf_model(base, *kind, std=0.5)
    out = generate(model, transport_steps=steps, **settings)
    sequences = out.particle_sequences.flatten(0, 1)
    tokens = sequences[:, 5:]
    lengths, finished = expected_ends(tokens, ends)
    assert out.lengths.shape == out.finished.shape == (3, 6)
    assert out.lengths.flatten().tolist() == lengths
    assert out.finished.flatten().tolist() == finished
    assert sum(finished) > 0 and len(set(lengths)) > 1, "the case says nothing"
    # Behind its end a response has neither values nor KL, and its value is that of the response alone.
    mask = response_mask(out.lengths, tokens.shape[1])
    assert not (out.token_scores * (1 - mask)).any() and not (out.kl * (1 - mask)).any()
    for row, length in enumerate(lengths):
        own = sequences[row : row + 1, : 5 + length]
        prompt_mask = prompts()[1][row // 6 : row // 6 + 1]
        attention = torch.cat([prompt_mask, torch.ones(1, length, dtype=torch.long)], dim=1)
        alone = model.score(own, attention, torch.ones(1, length, dtype=torch.long)).values
        torch.testing.assert_close(out.values.flatten()[row], alone[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(out.chosen, out.values.argmax(dim=-1))


@pytest.mark.parametrize("steps", [0, 2])
def test_a_limit_cuts_and_does_not_finish(base: PreTrainedModel, steps: int) -> None:
    model = vgf_model(base)
    never = {"eos_token_id": None, "transport_steps": steps}
    out = generate(model, **never)
    assert (out.lengths == LENGTH).all() and not out.finished.any()
    for limit in ({"max_time": 1e-9}, {"stopping_criteria": [MaxTimeCriteria(1e-9)]}):
        out = generate(model, **never, **limit)
        assert (out.lengths == 1).all() and not out.finished.any()
    # An end token in the last place that the limit leaves is an end.
    out = generate(model, transport_steps=steps, max_new_tokens=1, eos_token_id=list(range(VOCAB)))
    assert (out.lengths == 1).all() and out.finished.all()


@pytest.mark.parametrize("who", ["base", "value", "transport"])
def test_samples_know_their_ends(base: PreTrainedModel, who: Any) -> None:
    model = vgf_model(base, "log_ratio", "lora")
    options = {"do_sample": True, "max_new_tokens": LENGTH, "top_k": 0, "stopping_criteria": [AtHighTokens()]}
    transport = TransportConfig(min_candidate_prob=0.0)
    found = sample(model, *prompts(), who=who, num_particles=4, transport=transport, **options)
    lengths, finished = expected_ends(found.tokens, {EOS, *range(HIGH, VOCAB)})
    assert found.lengths.tolist() == lengths and found.finished.tolist() == finished


def test_votes_are_given_responses_without_what_stands_behind(base: PreTrainedModel) -> None:
    seen: list[list[int]] = []

    def last(token_ids: list[int]) -> int:
        seen.append(token_ids)
        return token_ids[-1]

    generate(
        vgf_model(base), selection="majority", answer_fn=last, stopping_criteria=[AtHighTokens()], transport_steps=2
    )
    ends = {EOS, *range(HIGH, VOCAB)}
    assert len(seen) == 18 and any(ids[-1] in ends for ids in seen)
    assert all(not ends & set(ids[:-1]) for ids in seen)


@pytest.mark.parametrize("space", ["sequence_embedding", "sequence_logit"])
@pytest.mark.parametrize("settings", [{}, {"control": "swaps"}, {"block_size": 4}, {"transport_steps": 0}])
@pytest.mark.parametrize("how", ["a criterion", "stop strings", "another end token"])
def test_whole_responses_end_there_too(space: str, settings: dict[str, Any], how: str) -> None:
    ending, ends = ENDS[how]
    model = sequence_model()
    strong = {"step_size": 0.5 if space == "sequence_embedding" else 20.0, "transport_steps": 2}
    out = generate(model, space=space, num_particles=3, **{**strong, **settings}, **ending)
    tokens = out.particle_sequences.flatten(0, 1)[:, 5:]
    rows = [row[:length] for row, length in zip(tokens.tolist(), out.lengths.flatten().tolist(), strict=True)]
    lengths, finished = expected_ends(tokens, ends)
    for row, own, length, ended, found in zip(
        tokens.tolist(), rows, lengths, finished, out.finished.flatten().tolist(), strict=True
    ):
        assert found == ended or not ends & set(row[: len(own)])
        assert len(own) == length or not ended
        assert not ends & set(own[:-1])
    assert out.finished.any()
