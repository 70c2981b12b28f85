# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Selection among particles, output shapes, streaming, defaults and bad input of `generate`."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from tests.layouts import EOS, PAD, VOCAB, prompts, shake, tiny_model, vgf_model
from vgf_llm.generation import VGFGenerateOutput, mask_after_eos, select
from vgf_llm.models import TransportConfig, VGFModel
from vgf_llm.models.language_model import position_ids_from_mask

SAMPLED = {"do_sample": True, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def model(base: PreTrainedModel) -> VGFModel:
    return vgf_model(base, "bilinear", std=0.5, transport=TransportConfig(step_size=0.5, min_candidate_prob=0.0))


def generate(model: VGFModel, seed: int = 0, **kwargs: Any) -> VGFGenerateOutput:
    torch.manual_seed(seed)
    return model.generate(*prompts(), return_dict_in_generate=True, **{**SAMPLED, **kwargs})


def test_select_by_value() -> None:
    values = torch.tensor([[0.1, 0.9, 0.2], [-3.0, -5.0, -2.0]])
    assert select(values, "value", answers=()).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("selection", "values", "weights", "answers", "expected"),
    [
        ("majority", [0.1, 0.9, 0.2], [1.0, 9.0, 1.0], ["a", "b", "a"], 2),
        ("majority", [0.5, 0.1, 0.4, 0.3], [1.0] * 4, ["a", "b", "b", "a"], 0),  # a tie: the best particle decides
        ("majority", [0.5, 0.6, 0.9, 0.9], [1.0] * 4, ["a", "a", None, None], 1),  # None has no vote
        ("majority", [0.5, 0.6], [1.0] * 2, [None, None], 1),  # nothing was answered: the value decides
        ("weighted_vote", [0.1, 0.9, 0.2], [0.2, 0.5, 0.2], ["a", "b", "a"], 1),
        ("weighted_vote", [0.1, 0.9, 0.2], [0.4, 0.5, 0.2], ["a", "b", "a"], 2),
        ("weighted_vote", [0.3, 0.2, 0.1], [0.1, 0.3, 9.0], ["a", "b", None], 1),
    ],
)
def test_votes(selection: str, values: list[float], weights: list[float], answers: list[Any], expected: int) -> None:
    chosen = select(torch.tensor([values]), selection, answers=[answers], weights=torch.tensor([weights]))
    assert chosen.tolist() == [expected]


def test_an_unknown_selection_is_refused() -> None:
    with pytest.raises(ValueError, match="`selection` must be value, weighted_vote or majority here, got 'best'"):
        select(torch.zeros(1, 2), "best", answers=[["a", "b"]])


@pytest.mark.parametrize("kind", [("bilinear", "policy"), ("log_ratio", "lora")])
@torch.no_grad()
def test_no_steps_and_selection_by_value_is_best_of_n(base: PreTrainedModel, kind: tuple[str, str]) -> None:
    model, n = vgf_model(base, *kind, std=0.5), 5
    ids, mask = prompts()
    torch.manual_seed(4)
    rows, row_mask = ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    sampled = base.generate(rows, attention_mask=row_mask, **SAMPLED)
    completion_mask = mask_after_eos(sampled[:, 5:], [EOS])
    values = model.score(sampled, torch.cat([row_mask, completion_mask], 1), completion_mask).values.view(3, n)
    best = values.argmax(-1)
    expected = sampled.view(3, n, -1)[torch.arange(3), best]
    out = generate(model, seed=4, transport_steps=0, num_particles=n, selection="value")
    assert torch.equal(out.sequences, expected)
    assert torch.equal(out.chosen, best)
    assert len(set(best.tolist())) > 1
    torch.testing.assert_close(out.values, values)
    torch.manual_seed(4)
    bare = model.generate(ids, mask, transport_steps=0, num_particles=n, **SAMPLED)
    assert torch.equal(bare, expected)


def test_every_particle_is_returned_without_selection(model: VGFModel) -> None:
    chosen = generate(model, num_particles=4)
    every = generate(model, num_particles=4, selection="none")
    assert torch.equal(every.sequences, chosen.particle_sequences.flatten(0, 1))
    assert torch.equal(chosen.sequences, chosen.particle_sequences[torch.arange(3), chosen.chosen])
    torch.manual_seed(0)
    bare = model.generate(*prompts(), num_particles=4, selection="none", **SAMPLED)
    assert torch.equal(bare, every.sequences)


def test_votes_count_answers(model: VGFModel) -> None:
    def parity(tokens: list[int]) -> str | None:
        assert tokens.index(EOS) == len(tokens) - 1 if EOS in tokens else len(tokens) == 6
        return None if tokens[0] % 5 == 0 else "even" if tokens[0] % 2 == 0 else "odd"

    outcomes = []
    for seed in range(6):
        votes = {
            selection: generate(model, seed=seed, num_particles=6, selection=selection, answer_fn=parity)
            for selection in ("majority", "weighted_vote")
        }
        values = votes["majority"].values
        answers = [[parity([t, EOS]) for t in row] for row in votes["majority"].particle_sequences[:, :, 5].tolist()]
        for selection, weights in (("majority", torch.ones_like(values)), ("weighted_vote", torch.sigmoid(values))):
            expected = select(values, "weighted_vote", answers=answers, weights=weights)
            assert torch.equal(votes[selection].chosen, expected)
        outcomes.append(torch.equal(votes["majority"].chosen, votes["weighted_vote"].chosen))
    assert not all(outcomes)


@pytest.mark.parametrize("steps", [0, 3])
def test_output_shapes(model: VGFModel, steps: int) -> None:
    out = generate(model, transport_steps=steps, num_particles=4, output_scores=True, output_logits=True)
    length = out.sequences.shape[1] - 5
    assert out.sequences.shape == (3, 5 + length)
    assert out.particle_sequences.shape == (3, 4, 5 + length)
    assert out.values.shape == (3, 4) and out.chosen.shape == (3,)
    assert out.token_scores.shape == out.kl.shape == (3, 4, length)
    assert len(out.scores) == len(out.logits) == length
    assert out.logits[0].shape == (12, VOCAB)
    mask = mask_after_eos(out.particle_sequences.flatten(0, 1)[:, 5:], [EOS]).view(3, 4, length).bool()
    assert not out.kl[~mask].any() and not out.token_scores[~mask].any()
    assert (out.kl[mask] >= 0).all() and bool(out.kl.any()) == (steps > 0)


def test_raw_logits_of_a_value_with_an_adapter_are_the_policys(base: PreTrainedModel) -> None:
    ids, mask = prompts()
    out = generate(vgf_model(base, "log_ratio", "lora"), num_particles=2, output_logits=True)
    expected = base(ids, attention_mask=mask, position_ids=position_ids_from_mask(mask)).logits[:, -1]
    torch.testing.assert_close(out.logits[0], expected.repeat_interleave(2, 0), atol=1e-5, rtol=1e-4)


class Collector(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens.extend(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("kind", [("bilinear", "policy"), ("log_ratio", "lora")])
@pytest.mark.parametrize("steps", [0, 3])
def test_streaming_gives_the_returned_tokens(base: PreTrainedModel, steps: int, kind: tuple[str, str]) -> None:
    model, streamer = vgf_model(base, *kind), Collector()
    ids = prompts()[0][2:]
    sequence = model.generate(ids, transport_steps=steps, streamer=streamer, **SAMPLED)
    assert streamer.ended and streamer.tokens == sequence[0].tolist()


def test_a_peft_policy_generates_with_its_own_adapter() -> None:
    policy = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear")).eval()
    shake(policy, std=0.2)
    ids, mask = prompts()
    torch.manual_seed(1)
    expected = policy.generate(input_ids=ids, attention_mask=mask, **SAMPLED)
    for kind in (("bilinear", "policy"), ("log_ratio", "lora")):
        model = vgf_model(policy, *kind)
        model.policy.load_state_dict(policy.state_dict(), strict=False)
        torch.manual_seed(1)
        found = model.generate(ids, mask, transport_steps=0, **SAMPLED)
        assert torch.equal(found, expected), kind


def test_the_models_defaults_are_used_and_overridden(base: PreTrainedModel) -> None:
    transport = TransportConfig(transport_steps=2, num_particles=3, min_candidate_prob=0.0)
    model = vgf_model(base, "bilinear", transport=transport)
    out = generate(model)
    assert out.particle_sequences.shape[1] == 3 and out.kl.any()
    out = generate(model, num_particles=2, transport_steps=0, step_size=None)
    assert out.particle_sequences.shape[1] == 2 and not out.kl.any()


def test_generation_config_counts(model: VGFModel) -> None:
    config = GenerationConfig(do_sample=True, max_new_tokens=3, pad_token_id=PAD, eos_token_id=[EOS, 7])
    config.return_dict_in_generate = True
    ids, mask = prompts()
    out = model.generate(ids, mask, generation_config=config, num_particles=8)
    assert isinstance(out, VGFGenerateOutput)
    tokens = out.particle_sequences.flatten(0, 1)[:, 5:]
    ended = mask_after_eos(tokens, [EOS, 7]).view(3, 8, -1) == 0
    assert tokens.shape[1] <= 3 and not out.kl[ended].any()
    assert ended.any()
    assert isinstance(model.generate(ids, mask, generation_config=config, return_dict_in_generate=False), Tensor)
    assert isinstance(
        model.generate(ids, mask, generation_config=config, return_dict_in_generate=False, transport_steps=0), Tensor
    )


def test_processors_of_the_caller_run_before_transport(model: VGFModel) -> None:
    class Only(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return torch.full_like(scores, -torch.inf).index_copy(1, torch.tensor([11, 12]), scores[:, [11, 12]])

    out = generate(model, num_particles=4, logits_processor=LogitsProcessorList([Only()]))
    assert set(out.particle_sequences[:, :, 5:].unique().tolist()) == {11, 12}


def test_a_missing_mask_is_read_from_the_pad_token(model: VGFModel) -> None:
    ids, mask = prompts()
    greedy = {"do_sample": False, "max_new_tokens": 6, "return_dict_in_generate": True}
    with_mask = model.generate(ids, mask, **greedy)
    without = model.generate(ids, **greedy)
    assert torch.equal(without.sequences, with_mask.sequences)
    torch.testing.assert_close(without.values, with_mask.values)
    # A pad token that is an end token may be a real token of the prompt: everything counts, as in transformers.
    same = model.generate(ids, pad_token_id=PAD, eos_token_id=PAD, **greedy)
    everything = model.generate(ids, torch.ones_like(ids), pad_token_id=PAD, eos_token_id=PAD, **greedy)
    torch.testing.assert_close(same.values, everything.values)


def test_mask_after_eos_without_an_end_token() -> None:
    assert mask_after_eos(torch.tensor([[5, 2, 0]]), []).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 2}, "`num_beams` must be 1"),
        ({"num_return_sequences": 2}, "`num_return_sequences` must be 1: set `num_particles`"),
        ({"num_particles": 2, "do_sample": False}, "`num_particles=2` with greedy decoding gives 2 equal responses"),
        ({"num_particles": 2, "streamer": Collector()}, "`streamer` needs `num_particles=1`"),
        ({"streamer": Collector()}, "`streamer` needs `num_particles=1` and one prompt"),
        ({"num_particles": 2, "past_key_values": DynamicCache()}, "`past_key_values` has no rows for particles"),
        ({"prompt_lookup_num_tokens": 3}, "`prompt_lookup_num_tokens` runs the model outside"),
        ({"guidance_scale": 1.5}, "`guidance_scale` runs the model outside"),
        ({"transport_steps": -1}, "`transport_steps` must be an integer >= 0 and finite, got -1"),
        ({"step_size": float("nan")}, "`step_size` must be a number > 0 and finite, got nan"),
        ({"step_size": float("inf")}, "`step_size` must be a number > 0 and finite, got inf"),
        ({"space": "token"}, "`space` must be one of 'logit'"),
        ({"selection": "best"}, "`selection` must be one of"),
        ({"control": "noise"}, "`control` must be one of None, 'random', 'shuffled' in `space='logit'`; got 'noise'"),
        (
            {"control": "noise", "transport_steps": 0},
            "`control` must be one of None, 'random', 'shuffled' in `space='logit'`; got 'noise'",
        ),
    ],
)
def test_bad_settings_are_refused(model: VGFModel, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(*prompts(), **{**SAMPLED, **kwargs})


def test_a_cache_has_no_rows_for_an_adapter(base: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="`past_key_values` has no rows"):
        vgf_model(base, "log_ratio", "lora").generate(*prompts(), **SAMPLED, past_key_values=DynamicCache())


@pytest.mark.parametrize("ids", [torch.zeros(2, 0, dtype=torch.long), torch.tensor([3, 4])])
def test_prompts_of_no_shape_are_refused(model: VGFModel, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`input_ids` must be a non-empty \[B, P\] tensor, got shape"):
        model.generate(ids, **SAMPLED)


def test_a_forward_without_its_backbone_is_reported(base: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vgf_model(base, "bilinear")
    kind = type(model.policy)
    forward = kind.forward

    def fused(self: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        return forward(base, input_ids, **kwargs)  # the backbone of another object

    monkeypatch.setattr(kind, "forward", fused)
    with pytest.raises(RuntimeError, match="did not call its backbone"):
        model.generate(*prompts(), use_cache=False, **SAMPLED)
