# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Transport of whole responses: what it leaves alone, what it raises, what it promises."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generation.sequence_values import MeanFeature, learned_value, sequence_model, token_value
from tests.layouts import EOS, LAYOUTS, VOCAB, prompts, tiny_model
from vgf_llm.generation import VGFGenerateOutput
from vgf_llm.models import SequenceValue, TransportConfig, VGFModel

SPACES = ["sequence_embedding", "sequence_logit"]
# Strong and wide, so that a tiny base with a one-hot value moves.
STRONG = {
    "sequence_embedding": {"step_size": 0.5, "transport_steps": 3, "decode_strength": 10.0},
    "sequence_logit": {"step_size": 20.0, "transport_steps": 3},
}


def run(model: VGFModel, seed: int = 0, **settings: Any) -> VGFGenerateOutput:
    ids, mask = settings.pop("prompts", prompts())
    defaults = {"num_particles": 3, "max_new_tokens": 8, "do_sample": True, "top_k": 0, "min_candidate_prob": 0.0}
    torch.manual_seed(seed)
    return model.generate(ids, mask, return_dict_in_generate=True, **{**defaults, **settings})


def texts(out: VGFGenerateOutput) -> list[list[int]]:
    rows = out.particle_sequences.flatten(0, 1)[:, prompts()[0].shape[1] :]
    cut = [row.tolist() for row in rows]
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in cut]


def value_of(out: VGFGenerateOutput, value: SequenceValue) -> Tensor:
    """The lower bound of every particle, each row without any padding."""
    ids, mask = prompts()
    found = []
    for index, text in enumerate(texts(out)):
        prompt = ids[index // 3][mask[index // 3].bool()]
        row = torch.cat([prompt, torch.tensor(text)]).unsqueeze(0)
        response = torch.arange(row.shape[1]).unsqueeze(0) >= len(prompt)
        found.append(value.lower_bound(value.from_ids(row, torch.ones_like(row), response.long())))
    return torch.cat(found).view(3, 3)


@pytest.mark.parametrize("space", SPACES)
def test_no_steps_is_best_of_n(space: str) -> None:
    model = sequence_model()
    out = run(model, space=space, transport_steps=0)
    assert out.num_steps == 0 and out.value_calls == 1
    torch.testing.assert_close(out.values, value_of(out, model.sequence_value), rtol=1e-4, atol=1e-5)
    assert torch.equal(out.chosen, out.values.argmax(dim=-1))
    assert torch.equal(out.sequences, out.particle_sequences[torch.arange(3), out.chosen])
    assert not out.kl.any() and not out.tokens_changed.any()


@pytest.mark.parametrize("space", SPACES)
def test_one_particle_without_steps_is_the_base(space: str) -> None:
    model = sequence_model()
    ids, mask = prompts()
    options = {"max_new_tokens": 8, "do_sample": True}
    torch.manual_seed(4)
    expected = model.policy.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(4)
    assert torch.equal(model.generate(ids, mask, space=space, transport_steps=0, num_particles=1, **options), expected)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_k": 5}, {"top_p": 0.6}])
def test_samples_have_the_distribution_of_generate(options: dict[str, Any]) -> None:
    model = sequence_model()
    ids = prompts()[0][2:, :]
    n, settings = 2000, {"max_new_tokens": 1, "do_sample": True, "top_k": 0, **options}
    out = model.generate(
        ids, None, space=SPACES[0], transport_steps=0, num_particles=n, selection="none", min_new_tokens=1, **settings
    )
    torch.manual_seed(5)
    expected = model.policy.generate(ids.repeat(n, 1), min_new_tokens=1, **settings)
    found, wanted = (torch.bincount(x[:, -1], minlength=VOCAB) / n for x in (out, expected))
    assert 0.5 * (found - wanted).abs().sum() < 0.08  # two samples of 2000 of one distribution differ by about 0.04


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("rescore", [True, False])
def test_decoding_without_a_tilt_reproduces_the_sample(space: str, rescore: bool) -> None:
    model = sequence_model()
    # Zero strength, and a value without any preference.
    still = (
        {"decode_strength": 0.0} if space == "sequence_embedding" else {"sequence_value": MeanFeature(torch.zeros(40))}
    )
    start = run(model, space=space, transport_steps=0)
    out = run(model, space=space, transport_steps=4, step_size=0.5, rescore=rescore, **still)
    assert texts(out) == texts(start)
    assert not out.kl.any() and not out.tokens_changed.any()
    assert not rescore or not out.kept_steps.any()
    if space == "sequence_logit":
        assert out.stop_reason == "stationary"
    else:
        assert out.stop_reason == "num_steps" and out.num_steps == 4


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"relift": True}, marks=pytest.mark.slow),
        pytest.param({"rescore": False}, marks=pytest.mark.slow),
    ],
)
def test_a_hand_made_value_is_raised_and_the_random_control_raises_it_less(space: str, settings: dict) -> None:
    model = sequence_model(value=token_value())
    gains, controls = [], []
    for seed in range(4):
        options = {"space": space, "num_particles": 8, **STRONG[space], **settings, "seed": seed}
        start = run(model, seed, space=space, num_particles=8, transport_steps=0).values
        options.pop("seed")
        gains.append((run(model, seed, **options).values - start).mean())
        controls.append((run(model, seed, control="random", **options).values - start).mean())
    gain, control = torch.stack(gains), torch.stack(controls)
    assert gain.min() > 0.1
    assert (gain - control).min() > 0.05


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("settings", [{}, {"relift": True}, {"control": "swaps"}])
def test_the_best_step_is_kept_and_values_are_those_of_the_text(space: str, settings: dict) -> None:
    model = sequence_model()
    start = run(model, space=space, transport_steps=0)
    out = run(model, space=space, **STRONG[space], **settings)
    assert (out.values >= start.values - 1e-6).all()
    torch.testing.assert_close(out.values, value_of(out, model.sequence_value), rtol=1e-4, atol=1e-5)
    kept = out.kept_steps == 0
    assert not out.tokens_changed[kept].any()
    same = torch.tensor([a == b for a, b in zip(texts(out), texts(start), strict=True)]).view(3, 3)
    assert torch.equal(out.tokens_changed == 0, same)


@pytest.mark.parametrize("space", SPACES)
def test_value_calls_are_counted_and_swaps_get_as_many(space: str) -> None:
    value = token_value()
    model = sequence_model(value=value)
    for settings in ({}, {"relift": True}, {"rescore": False}):
        spent = []
        for control in (None, "swaps"):
            value.calls = 0
            out = run(model, space=space, control=control, **{**STRONG[space], **settings})
            assert out.value_calls == value.calls
            spent.append(value.calls)
        assert spent[0] == spent[1]


def test_stops_where_nothing_moves_or_changes() -> None:
    model = sequence_model(value=token_value())
    settings = {"space": "sequence_embedding", "step_size": 0.5, "transport_steps": 12}
    still = run(model, sequence_value=MeanFeature(torch.zeros(40)), **settings)
    assert still.stop_reason == "stationary" and still.num_steps == 0
    far = run(model, **{**settings, "step_size": 2.0})
    assert far.stop_reason == "no_change" and far.num_steps < 12
    assert run(model, **{**settings, "transport_steps": 1}).stop_reason == "num_steps"


def test_shuffled_gradients_help_less() -> None:
    model = sequence_model(value=token_value())

    class Last(MeanFeature):
        """Worth depends on the prompt: rows want different tokens."""

        def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
            first = (inputs_embeds[:, -9:-8] @ torch.arange(40.0).unsqueeze(-1)).squeeze(-1)  # the prompt's last id
            wanted = (torch.arange(40) % 3 == (first.round().long() % 3)).float()
            weights = response_mask / response_mask.sum(dim=-1, keepdim=True)
            return torch.einsum("rs,rsv,rv->r", weights, inputs_embeds, wanted).unsqueeze(-1)

    ids = torch.tensor([[11, 12, 6, 21, 36], [11, 12, 6, 21, 37]])
    options = {
        "prompts": (ids, torch.ones_like(ids)),
        "sequence_value": Last(torch.zeros(40)),
        "num_particles": 8,
        "min_new_tokens": 8,
        "rescore": False,
        "space": "sequence_embedding",
    }
    start = run(model, transport_steps=0, **options).values.mean()
    options.update(STRONG["sequence_embedding"])
    own = run(model, **options).values.mean() - start
    others = run(model, control="shuffled", **options).values.mean() - start
    assert own > 0.2 and others < own / 2
    with pytest.raises(ValueError, match="second prompt"):
        run(model, **{**options, "control": "shuffled", "num_particles": 1, "prompts": (ids[:1], None)})


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("rescore", [True, False])
def test_the_kl_cap_holds_and_stops(space: str, rescore: bool) -> None:
    model = sequence_model(value=token_value())
    settings = {"space": space, **STRONG[space], "transport_steps": 6, "rescore": rescore}
    free = run(model, **settings)
    lengths = (free.kl > 0).sum(dim=-1).clamp(min=1)
    assert (free.kl.sum(dim=-1) / lengths).max() > 0.3
    capped = run(model, max_kl=0.05, **settings)
    mean = torch.tensor(
        [kl[: len(text)].mean() for kl, text in zip(capped.kl.flatten(0, 1), texts(capped), strict=True)]
    )
    assert mean.max() <= 0.05
    assert capped.stop_reason == "max_kl" and capped.num_steps < 6


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_blocks_steer_while_writing(space: str, alpha: float | None) -> None:
    model = sequence_model(value=token_value())
    whole = run(model, space=space, transport_steps=0, max_new_tokens=12, num_particles=4)
    blocks = run(model, space=space, transport_steps=0, max_new_tokens=12, num_particles=4, block_size=4, alpha=alpha)
    moved = run(model, space=space, max_new_tokens=12, num_particles=4, block_size=4, **STRONG[space], alpha=alpha)
    for out in (blocks, moved):
        assert out.particle_sequences.shape[:2] == (3, 4)
        assert out.kl.shape[-1] == out.particle_sequences.shape[-1] - 5 <= 12
        expected = [torch.tensor([float(token % 4 == 3) for token in text]).mean() for text in texts(out)]
        torch.testing.assert_close(out.values.flatten(), torch.stack(expected))
    assert blocks.values.max(dim=-1).values.mean() > whole.values.mean()
    assert moved.values.mean() > whole.values.mean() + 0.1


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "settings", [{}, {"block_size": 4, "alpha": 0.5}, {"control": "swaps", "block_size": 4}, {"relift": True}]
)
def test_the_value_reads_a_prompt_once(space: str, settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sequence_model()
    read, rows = SequenceValue.read_prefix, []

    def counted(value: SequenceValue, input_ids: Tensor, attention_mask: Tensor) -> Any:
        rows.append(len(input_ids))
        return read(value, input_ids, attention_mask)

    monkeypatch.setattr(SequenceValue, "read_prefix", counted)
    kept = run(model, space=space, **{**STRONG[space], **settings})
    assert rows == [3] if "block_size" not in settings else rows[0] == 3 and len(rows) == 2  # once per prompt or block
    monkeypatch.setattr(SequenceValue, "read_prefix", lambda *args: None)
    anew = run(model, space=space, **{**STRONG[space], **settings})
    assert texts(kept) == texts(anew) and kept.value_calls == anew.value_calls
    torch.testing.assert_close(kept.values, anew.values, rtol=1e-4, atol=1e-5)


def test_one_block_is_the_whole_response() -> None:
    model = sequence_model()
    settings = {"space": "sequence_embedding", **STRONG["sequence_embedding"]}
    assert texts(run(model, block_size=8, **settings)) == texts(run(model, **settings))


def test_blocks_continue_the_cache_as_if_read_anew() -> None:
    model = sequence_model()
    settings = {"space": "sequence_logit", "transport_steps": 0, "block_size": 2, "max_new_tokens": 8}
    cached, anew = run(model, **settings), run(model, use_cache=False, **settings)
    assert texts(cached) == texts(anew)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_moves_and_returns_to_the_sample(layout: str) -> None:
    value = learned_value(layout)
    model = sequence_model(layout, value)
    start = run(model, space="sequence_embedding", transport_steps=0)
    cached = run(model, space="sequence_embedding", transport_steps=0, use_cache=False)
    assert texts(start) == texts(cached)
    still = run(model, space="sequence_embedding", transport_steps=1, decode_strength=0.0, rescore=False)
    assert texts(still) == texts(start)
    for space in SPACES:
        settings = {"step_size": 0.5 if space == "sequence_embedding" else 50.0, "transport_steps": 2}
        out = run(model, space=space, interaction=True, repulsion=True, **settings)
        assert (out.values >= start.values - 1e-6).all() and torch.isfinite(out.kl).all()


def test_greedy_decoding_moves_one_particle() -> None:
    model = sequence_model(value=token_value())
    settings = {"space": "sequence_embedding", "num_particles": 1, "do_sample": False, "max_new_tokens": 8}
    start = run(model, transport_steps=0, **settings)
    ids, mask = prompts()
    expected = model.policy.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(start.sequences, expected)
    moved = run(model, **settings, **STRONG["sequence_embedding"])
    assert moved.values.mean() > start.values.mean()
    with pytest.raises(ValueError, match="do_sample"):
        run(model, **{**settings, "num_particles": 2})


def test_votes_streams_and_selection_none() -> None:
    model = sequence_model()
    ids, mask = prompts()
    everything = model.generate(
        ids, mask, space="sequence_logit", transport_steps=1, num_particles=3, selection="none", do_sample=True
    )
    assert everything.shape[0] == 9
    voted = run(
        model, space="sequence_logit", transport_steps=1, selection="majority", answer_fn=lambda ids: len(ids) > 4
    )
    assert voted.chosen.shape == (3,)


@pytest.mark.parametrize("space", SPACES)
def test_interaction_and_the_other_options_run(space: str) -> None:
    model = sequence_model()
    for settings in (
        {"interaction": True},
        {"interaction": True, "repulsion": True, "alpha": 0.5},
        {"alpha": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"min_entropy": 2.0, "min_candidate_prob": 0.02},
        {"lower_bound_coef": 0.0},
        {"repetition_penalty": 1.2},
        {"num_particles": 1, "interaction": True, "repulsion": True},
    ):
        out = run(model, space=space, **{**STRONG[space], **settings})
        assert torch.isfinite(out.values).all() and torch.isfinite(out.kl).all(), settings


def test_defaults_come_from_the_model_and_are_saved(tmp_path) -> None:
    model = sequence_model()
    model.transport = TransportConfig(
        space="sequence_embedding",
        transport_steps=2,
        num_particles=2,
        step_size=0.5,
        block_size=4,
        min_candidate_prob=0.0,
    )
    model.save_pretrained(tmp_path)
    again = VGFModel.from_pretrained(tmp_path)
    for name, tensor in model.sequence_value.state_dict().items():
        assert torch.equal(tensor, again.sequence_value.state_dict()[name]), name
    ids, mask = prompts()
    found = []
    for each in (model, again):
        torch.manual_seed(0)
        found.append(each.generate(ids, mask, do_sample=True, max_new_tokens=8))
    assert torch.equal(*found)
    model.sequence_value = token_value()
    with pytest.raises(TypeError, match="MeanFeature"):
        model.save_pretrained(tmp_path / "other")


def test_equal_responses_are_a_defined_limit() -> None:
    model = sequence_model()
    # One candidate per position: every sample is the greedy text, the kernel has no width and nothing can move.
    for space in SPACES:
        out = run(model, space=space, top_k=1, interaction=True, repulsion=True, **STRONG[space])
        assert torch.isfinite(out.values).all()


def test_black_boxes_select_and_search_but_do_not_flow() -> None:
    model = sequence_model()
    model.sequence_value = None
    seen: list[int] = []

    def score(prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
        seen.append(len(responses))
        assert prompts[0] == [5, 9]
        return [sum(token % 4 == 3 for token in response) / len(response) for response in responses]

    start = run(model, space="sequence_embedding", transport_steps=0, sequence_value=score)
    assert torch.equal(start.chosen, start.values.argmax(-1)) and seen == [9]
    found = run(model, space="sequence_embedding", transport_steps=8, sequence_value=score, control="swaps")
    assert found.values.mean() > start.values.mean() and found.kl is None and len(seen) == 1 + found.value_calls
    with pytest.raises(ValueError, match=r"gradient.*transport_steps=0.*control='swaps'"):
        run(model, space="sequence_embedding", sequence_value=score)
    with pytest.raises(ValueError, match="one number for each"):
        run(model, space="sequence_embedding", transport_steps=0, sequence_value=lambda p, r: [1.0])


class _NoGradient(MeanFeature):
    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        return super().forward(inputs_embeds.detach(), attention_mask, response_mask)


class _NotFinite(MeanFeature):
    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        return super().forward(inputs_embeds, attention_mask, response_mask) * torch.nan


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (MeanFeature(torch.zeros(VOCAB + 1)), "41 tokens.*40"),
        (_NoGradient(torch.ones(VOCAB)), "no gradient"),
        (_NotFinite(torch.ones(VOCAB)), "NaN or infinite"),
        ("a string", "callable"),
    ],
)
def test_values_that_cannot_serve_are_named(space: str, value: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        run(sequence_model(), space=space, sequence_value=value)


@pytest.mark.parametrize("space", SPACES)
def test_bad_calls_are_named(space: str) -> None:
    model = sequence_model()
    model.sequence_value = None
    with pytest.raises(ValueError, match="needs a sequence value"):
        run(model, space=space)
    short = SequenceValue(tiny_model(max_position_embeddings=6))
    with pytest.raises(ValueError, match="context is 6"):
        run(model, space=space, sequence_value=short, min_new_tokens=8)
    model.sequence_value = learned_value()
    for settings, message in (
        ({"control": "nothing"}, "control"),
        ({"output_scores": True}, "output_scores"),
        ({"max_kl": 0.1, "control": "swaps"}, "max_kl"),
        ({"relift": True, "rescore": False}, "relift"),
        ({"projection": "nearest"}, "projection"),
        ({"block_size": 0}, "block_size"),
        ({"num_beams": 2}, "num_beams"),
        ({"anchor": 0.1}, "anchor"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, space=space, **settings)
    with pytest.raises(ValueError, match="control"):
        run(model, space="logit", control="swaps")
