# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What a sequence-level value learns from: an ensemble's losses, and the policy's on transported responses."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from vgf_llm.functional import masked_mean, pairwise_value_loss
from vgf_llm.models import VGFModel
from vgf_llm.models.sequence_value import DifferentiableValue
from vgf_llm.trainer.objective import Batch, sequences
from vgf_llm.trainer.vgf_config import VGFConfig


def needed_value(model: VGFModel) -> DifferentiableValue:
    """The model's sequence value, for those who cannot do without."""
    if model.sequence_value is None:
        raise ValueError(
            "`value_parametrization='sequence'` trains `model.sequence_value`, and this VGFModel has none. Build it "
            "with `sequence_value=SequenceValue(...)`, or pass the policy alone."
        )
    return model.sequence_value


def response_mask(batch: Batch) -> Tensor:
    """Marks the response in the joined sequences of a batch, `[R, P + T]`."""
    return torch.cat([torch.zeros_like(batch["prompt_mask"]), batch["completion_mask"]], dim=1)


def sequence_losses(
    model: nn.Module, vgf_model: VGFModel, batch: Batch, kind: str, args: VGFConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of one batch.

    Args:
        model: The wrapped model, which everything with a gradient runs through.
        vgf_model: The model inside.
        batch: The batch.
        kind: `"pairwise"` or `"regression"`.
        args: Weights of the losses.

    Returns:
        The loss and what is logged.
    """
    input_ids, attention_mask, mask = sequences(batch)
    tokens = batch["completion_ids"].unsqueeze(-1) if args.distill_coef > 0 else None
    output = model(input_ids, attention_mask, mask.shape[1], response_mask=response_mask(batch), candidate_ids=tokens)
    values = output.sequence_values
    loss = torch.zeros((), device=input_ids.device)
    measured = {}
    if args.value_coef > 0:
        value = sequence_value_loss(kind, values, batch, args.seed)
        loss = loss + args.value_coef * value
        measured["value/loss"] = value.detach()
    if output.policy_logps is not None:
        lower = needed_value(vgf_model).lower_bound(values.detach(), vgf_model.transport.lower_bound_coef)
        distilled = best_response_loss(output.policy_logps.squeeze(-1), lower, batch)
        loss = loss + args.distill_coef * distilled
        measured["distill/loss"] = distilled.detach()
    return loss, measured


def sequence_value_loss(kind: str, values: Tensor, batch: Batch, seed: int) -> Tensor:
    """The mean over members of each one's loss on its own bootstrap of the prompts.

    Args:
        kind: `"pairwise"`: logistic, over pairs of responses of one prompt; `"regression"`: squared error.
        values: `[R, H]`, with gradients.
        batch: The batch; `rewards` `[R]` is NaN on rows that do not train, `num_groups` what to divide by.
        seed: Seed of the run, which decides the bootstraps.

    Returns:
        A scalar.

    Raises:
        ValueError: For another kind.
    """
    groups, size = batch["group_shape"]
    rewards = batch["rewards"].view(groups, size)
    members = values.view(groups, size, -1)
    weights = bootstrap_weights(batch, members.shape[-1], seed)
    if kind == "pairwise":
        losses = [pairwise_value_loss(members[..., h], rewards, reduction="prompt") for h in range(members.shape[-1])]
        per_group = torch.stack(losses, dim=-1)
    elif kind == "regression":
        scored = ~rewards.isnan()
        errors = (members - torch.where(scored, rewards, 0.0).unsqueeze(-1)).square()
        per_group = (errors * scored.unsqueeze(-1)).mean(dim=1)
    else:
        raise ValueError(f"`value_loss` of a sequence value must be 'pairwise' or 'regression', got {kind!r}.")
    return (weights * per_group).mean(dim=-1).sum() / batch["num_groups"]


def bootstrap_weights(batch: Batch, num_members: int, seed: int) -> Tensor:
    """How often each member of an ensemble sees each prompt, `[P, H]`: Poisson draws of mean 1.

    A prompt's draws are decided by its tokens and the seed, so that they are the same in every round, process and
    resumed run. One member sees everything once.

    Args:
        batch: A batch of P groups.
        num_members: H.
        seed: Seed of the run.
    """
    groups, size = batch["group_shape"]
    device = batch["rewards"].device
    if num_members == 1:
        return torch.ones(groups, 1, device=device)
    rows = []
    for ids, mask in zip(batch["prompt_ids"][::size].cpu(), batch["prompt_mask"][::size].cpu(), strict=True):
        text = f"{seed}:{','.join(map(str, ids[mask.bool()].tolist()))}".encode()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest()))
        rows.append(torch.poisson(torch.ones(num_members), generator=generator))
    return torch.stack(rows).to(device)


def best_response_loss(logps: Tensor, values: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood per token of each prompt's response of highest value: the distillation loss.

    Args:
        logps: `[R, T]`, log-probabilities of the response tokens under the policy, with gradients.
        values: `[R]`, without.
        batch: The batch.

    Returns:
        A scalar.
    """
    best = values.view(batch["group_shape"]).argmax(dim=-1, keepdim=True)
    nll = -masked_mean(logps, batch["completion_mask"], dim=-1).view(batch["group_shape"])
    return nll.gather(-1, best).sum() / batch["num_groups"]


@torch.no_grad()
def gate_values(model: VGFModel, batch: Batch) -> Tensor:
    """The mean of the members' values of a batch's responses, `[R]`."""
    input_ids, attention_mask, _ = sequences(batch)
    # Not through the model's forward: processes have different numbers of batches, and ZeRO-3 counts forwards.
    return needed_value(model).mean(model.sequence_scores(input_ids, attention_mask, response_mask(batch)))


def is_sequence(args: Any) -> bool:
    """Whether the value that is trained is one of whole responses."""
    return args.value_parametrization == "sequence"
