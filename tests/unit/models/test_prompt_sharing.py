# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A prompt that is read once for its responses gives what reading it once per response gives, with its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.layouts import EOS, LAYOUTS, PAD, prompts, tiny_model, vgf_model
from vgf_llm.generation import mask_after_eos
from vgf_llm.models import language_model, prompt_sharing
from vgf_llm.models.prompt_sharing import can_share_prompts, grouped_hidden_states
from vgf_llm.vgf_model import VGFModel

WINDOWED = {"mistral", "gemma2", "gemma3"}


def groups() -> tuple[Tensor, Tensor, Tensor]:
    """Three prompts with two responses each: ids, attention mask, completion mask."""
    ids, mask = (x.repeat_interleave(2, dim=0) for x in prompts())
    tokens = torch.tensor(
        [[7, 9, 30, 12], [5, EOS, PAD, PAD], [22, 3, 19, EOS], [8, 8, EOS, PAD], [EOS, PAD, PAD, PAD], [31, 6, 4, 9]]
    )
    completion_mask = mask_after_eos(tokens, [EOS])
    return torch.cat([ids, tokens], dim=1), torch.cat([mask, completion_mask], dim=1), completion_mask


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 3, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_states_and_gradients_are_those_of_separate_rows(layout: str, sizes: tuple[int, ...]) -> None:
    model = tiny_model(layout)
    assert can_share_prompts(model) == (layout not in WINDOWED)
    if layout in WINDOWED:
        return
    ids, mask, completion_mask = groups()
    owner = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    ids[:, :-4], mask[:, :-4] = (x[owner] for x in prompts())
    real = torch.cat([torch.ones(6, 1), completion_mask], dim=1).unsqueeze(-1)
    results = []
    for shared in (False, True):
        model.zero_grad()
        if shared:
            hidden = grouped_hidden_states(model, ids, mask, 4, sizes)
        else:
            hidden = language_model.last_hidden_states(model, ids, mask)[:, -5:]
        (hidden.sin() * real).sum().backward()
        results.append((hidden * real, [p.grad for p in model.parameters() if p.grad is not None]))
    (plain, plain_grads), (shared_states, shared_grads) = results
    torch.testing.assert_close(shared_states, plain, atol=1e-4, rtol=1e-4)
    assert len(plain_grads) == len(shared_grads) > 0
    for ours, theirs in zip(shared_grads, plain_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("parametrization", "backbone"),
    [("bilinear", "policy"), ("vocab", "lora"), ("log_ratio", "lora"), ("log_ratio", "copy")],
)
def test_every_pass_over_groups_gives_what_single_rows_give(
    parametrization: str, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vgf_model(tiny_model("llama"), parametrization, backbone)
    ids, mask, completion_mask = groups()
    read: list[int] = []
    run = language_model.last_hidden_states

    def counted(model: Any, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
        read.append(input_ids.numel())
        return run(model, input_ids, attention_mask, **kwargs)

    monkeypatch.setattr(prompt_sharing, "last_hidden_states", counted)
    plain, shared = (model(ids, mask, 4, group_size=n).scores for n in (1, 2))
    assert set(read) == {6 * 5, 3 * 5, 6 * 4}
    torch.testing.assert_close(shared * completion_mask, plain * completion_mask, atol=1e-4, rtol=1e-4)
    plain, shared = (model.score(ids, mask, completion_mask, group_size=n).values for n in (1, 2))
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-4)
    plain, shared = (model.ref_logps(ids, mask, 4, group_size=n) for n in (1, 2))
    torch.testing.assert_close(shared * completion_mask, plain * completion_mask, atol=1e-4, rtol=1e-4)
    plain, shared = (model.candidate_values(ids, mask, 4, top_k=6, min_prob=0.0, group_size=n).q_values for n in (1, 2))
    real = completion_mask.unsqueeze(-1)
    torch.testing.assert_close(shared * real, plain * real, atol=1e-4, rtol=1e-4)


def test_which_forwards_run_does_not_depend_on_the_groups() -> None:
    """Processes that shard a model run the same forwards whatever groups their rows are in."""
    model = vgf_model(tiny_model("llama"), "log_ratio", "lora")
    ids, mask, completion_mask = groups()
    runs = []
    model.policy.get_base_model().model.register_forward_hook(lambda *_: runs.append(1))
    counts = set()
    for rows, size in ((6, 2), (6, 1), (6, (1, 3, 2)), (1, 1), (2, (1, 1))):
        runs.clear()
        batch = ids[:rows], mask[:rows]
        model(*batch, 4, group_size=size, ref_logps=model.ref_logps(*batch, 4, group_size=size))
        model.score(*batch, completion_mask[:rows], group_size=size)
        counts.add(len(runs))
    assert counts == {2 + 2 + 4}


def test_gradient_checkpointing_reads_prompts_row_by_row() -> None:
    model = vgf_model(tiny_model("llama"), "log_ratio", "copy").train()
    assert can_share_prompts(model.value_model)
    model.gradient_checkpointing_enable()
    assert not can_share_prompts(model.value_model)
    ids, mask, _ = groups()
    model(ids, mask, 4, group_size=2).scores.sum().backward()
    assert all(p.grad is not None for p in model.value_model.model.parameters())


def test_groups_have_to_fit_the_batch() -> None:
    model: VGFModel = vgf_model(tiny_model("llama"))
    ids, mask, _ = groups()
    with pytest.raises(ValueError, match="`group_size` must divide the 6 rows of the batch, got 4"):
        model(ids, mask, 4, group_size=4)
