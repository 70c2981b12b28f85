# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a call says about a prompt reaches every one of its particles, or is refused by name."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria
from transformers.generation.logits_process import EncoderRepetitionPenaltyLogitsProcessor

from tests.generation.sequence_values import sequence_model
from tests.layouts import VOCAB, prompts, tiny_model, vgf_model
from vgf_llm.generation import sample
from vgf_llm.models import VGFModel
from vgf_llm.models.language_model import position_ids_from_mask

SETS = {0: [10, 11], 1: [20, 21], 2: [30, 31]}
SAMPLED = {"do_sample": True, "max_new_tokens": 4, "selection": "none", "top_k": 0}
KINDS = [("bilinear", "policy"), ("log_ratio", "lora"), ("log_ratio", "copy")]


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return tiny_model("llama")


def check_rows(sequences: Tensor, n: int) -> None:
    for row, tokens in enumerate(sequences[:, 5:].tolist()):
        assert set(tokens) <= set(SETS[row // n]), row


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_prefix_functions_are_asked_with_the_prompts_index(
    base: PreTrainedModel, kind: tuple[str, str], steps: int, n: int
) -> None:
    asked = set()

    def allowed(prompt: int, input_ids: Tensor) -> list[int]:
        asked.add(prompt)
        return SETS[prompt]

    model = vgf_model(base, *kind)
    out = model.generate(
        *prompts(), transport_steps=steps, num_particles=n, prefix_allowed_tokens_fn=allowed, **SAMPLED
    )
    check_rows(out, n)
    assert asked == {0, 1, 2}


class OfEachRow(LogitsProcessor):
    """Knows its rows, as plain `generate` would have it, and counts its own calls."""

    def __init__(self) -> None:
        self.sets = torch.full((3, VOCAB), -torch.inf)
        for row, tokens in SETS.items():
            self.sets[row, tokens] = 0.0
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert scores.shape[0] == 3
        self.calls += 1
        return scores + self.sets


@pytest.mark.parametrize("steps", [0, 2])
def test_processors_with_rows_have_one_for_each_particle(base: PreTrainedModel, steps: int) -> None:
    model, processor = vgf_model(base), OfEachRow()
    out = model.generate(*prompts(), transport_steps=steps, num_particles=3, logits_processor=[processor], **SAMPLED)
    check_rows(out, 3)
    assert processor.calls == out.shape[1] - 5
    for who in ("base", "transport"):
        found = sample(
            model,
            *prompts(),
            who=who,
            num_particles=2,
            logits_processor=LogitsProcessorList([OfEachRow()]),
            do_sample=True,
            max_new_tokens=3,
        )
        check_rows(torch.cat([torch.zeros(6, 5, dtype=torch.long), found.tokens], dim=1), 2)


def test_processors_of_transformers_with_rows(base: PreTrainedModel) -> None:
    ids, _ = prompts()
    harsh = {"logits_processor": [EncoderRepetitionPenaltyLogitsProcessor(1e-6, ids)]}
    out = vgf_model(base).generate(*prompts(), transport_steps=0, num_particles=2, **harsh, **SAMPLED)
    own = (out[:, 5:, None] == ids.repeat_interleave(2, 0)[:, None, :]).any(-1)
    assert not own.all()  # a penalty below 1 drives the prompt's own tokens away, every prompt's its own


class AfterOfEachRow(StoppingCriteria):
    """Ends row r after r + 1 tokens."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.shape[1] - 5 > torch.arange(input_ids.shape[0])


@pytest.mark.parametrize("steps", [0, 2])
def test_criteria_with_rows_have_one_for_each_particle(base: PreTrainedModel, steps: int) -> None:
    out = vgf_model(base).generate(
        *prompts(),
        transport_steps=steps,
        num_particles=2,
        stopping_criteria=[AfterOfEachRow()],
        return_dict_in_generate=True,
        eos_token_id=None,
        **SAMPLED,
    )
    assert out.lengths.tolist() == [[1, 1], [2, 2], [3, 3]] and out.finished.all()


class AfterThree(StoppingCriteria):
    """Answers for all rows with one bool, as transformers lets it."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        return input_ids.shape[1] - 5 >= 3


@pytest.mark.parametrize("particles", [1, 2])
def test_a_criterion_may_answer_for_all_rows_at_once(base: PreTrainedModel, particles: int) -> None:
    more = {"stopping_criteria": [AfterThree()], "return_dict_in_generate": True, "eos_token_id": None}
    out = vgf_model(base).generate(*prompts(), transport_steps=2, num_particles=particles, **more, **SAMPLED)
    assert out.lengths.flatten().tolist() == [3] * 3 * particles and out.finished.all()


def test_a_processor_that_cannot_be_copied_is_named(base: PreTrainedModel) -> None:
    processor = OfEachRow()
    processor.lock = threading.Lock()
    with pytest.raises(ValueError, match="`logits_processor` holds a OfEachRow that cannot be copied for 2 particles"):
        vgf_model(base).generate(*prompts(), num_particles=2, logits_processor=[processor], **SAMPLED)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_positions_and_token_types_that_say_nothing_change_nothing(
    base: PreTrainedModel, kind: tuple[str, str], steps: int
) -> None:
    model, (ids, mask) = vgf_model(base, *kind), prompts()
    outs = []
    for given in ({}, {"position_ids": position_ids_from_mask(mask)}, {"position_ids": mask.cumsum(-1) - 1}):
        torch.manual_seed(0)
        outs.append(model.generate(ids, mask, transport_steps=steps, num_particles=2, **given, **SAMPLED))
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_the_policy_alone_takes_positions_of_the_callers(base: PreTrainedModel) -> None:
    ids, mask = prompts()
    given = position_ids_from_mask(mask) * 3
    model = vgf_model(base)
    found = sample(model, ids, mask, who="base", num_particles=2, position_ids=given, top_k=1, **{
        "do_sample": True, "max_new_tokens": 4
    })  # fmt: skip
    expected = base.generate(ids, attention_mask=mask, position_ids=given, max_new_tokens=4)[:, 5:]
    other = base.generate(ids, attention_mask=mask, max_new_tokens=4)[:, 5:]
    assert torch.equal(found.tokens, expected.repeat_interleave(2, 0)) and not torch.equal(expected, other)


def _calls(model: VGFModel) -> list[dict[str, Any]]:
    ids, mask = prompts()
    embeds = model.policy.get_input_embeddings()(ids)
    return [
        {"position_ids": position_ids_from_mask(mask) * 3},
        {"token_type_ids": mask},
        {"inputs_embeds": embeds},
        {"pixel_values": torch.zeros(3, 3, 8, 8)},
        {"images": [torch.zeros(3, 8, 8)] * 3},
    ]


@pytest.mark.parametrize("settings", [{"transport_steps": 2}, {"transport_steps": 0, "selection": "value"}])
def test_what_a_value_would_not_see_is_refused(base: PreTrainedModel, settings: dict[str, Any]) -> None:
    model = vgf_model(base)
    for given in _calls(model):
        with pytest.raises(ValueError, match=f"`{next(iter(given))}`"):
            model.generate(*prompts(), num_particles=2, **{**SAMPLED, **settings}, **given)
        with pytest.raises(ValueError, match=f"`{next(iter(given))}`"):
            sequence_model().generate(*prompts(), space="sequence_embedding", num_particles=2, **SAMPLED, **given)


def test_settings_are_read_as_transformers_reads_them(base: PreTrainedModel) -> None:
    from transformers import GenerationConfig

    model = vgf_model(base)
    model.generation_config.do_sample = True
    short = GenerationConfig(max_new_tokens=3, pad_token_id=0)  # says nothing about sampling: the model's own stands
    out = model.generate(*prompts(), generation_config=short, num_particles=2, transport_steps=2, selection="none")
    assert out.shape[0] == 6 and out.shape[1] <= 8
    with pytest.raises(ValueError, match="`num_particles=2` with greedy decoding"):
        model.generate(*prompts(), generation_config=short, num_particles=2, do_sample=False)
    model.generation_config.num_beams = 2
    with pytest.raises(ValueError, match="`num_beams` must be 1"):
        model.generate(*prompts(), generation_config=short, num_particles=2)


def test_the_default_length_is_that_of_transformers() -> None:
    model = sequence_model()
    ids, mask = prompts()
    expected = model.policy.generate(ids, attention_mask=mask, min_new_tokens=20).shape[1]
    out = model.generate(ids, mask, space="sequence_embedding", transport_steps=1, do_sample=True, min_new_tokens=20)
    assert out.shape[1] == expected == 25
