# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How likely responses are under the reference, and how far from it the distribution that they were drawn from is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vgf_llm import VGFModel
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.language_model import STATES_AT_A_TIME, logits_of_states
from vgf_llm.models.valued_policy import Rows

_MAX_TOKENS = 2**14  # in one block of [R, P + T]


@dataclass(frozen=True)
class Likelihood:
    """Sums over a response's tokens, in nats.

    Attributes:
        base_logps: `[R]`, log-probability under the reference.
        kl: `[R]`, whose mean estimates the KL divergence of the sampling distribution to the reference.
    """

    base_logps: Tensor
    kl: Tensor


@torch.no_grad()
def likelihood(
    model: VGFModel,
    sequences: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    *,
    greedy: bool = False,
    temperature: float = 1.0,
    transport_kl: Tensor | None = None,
    group_size: int = 1,
) -> Likelihood:
    """Scores finished responses under the reference, in blocks of rows that bound the memory for activations.

    The divergence is summed along each sampled path. A plain policy's is exact at every token. A greedy one puts all
    mass on its response, so its divergence is that response's surprise. Transport by `KL(q || p)` from a policy `p`
    that differs from the reference `mu` adds `log p - log mu` of the sampled tokens, whose expectation under `q` is the
    rest: `KL(q || mu) = KL(q || p) + E_q[log p - log mu]`.

    Args:
        model: The model.
        sequences: `[R, P + T]`.
        attention_mask: `[R, P + T]`.
        completion_mask: `[R, T]`, 1 on response tokens.
        greedy: Whether responses were decoded greedily.
        temperature: Of sampling without transport.
        transport_kl: `[R, T]`, divergence that transport spent at every token; `None` without transport.
        group_size: Adjacent rows that share a prompt, which is then read once for all of them.

    Returns:
        A `Likelihood`.
    """
    num_tokens = completion_mask.shape[1]
    block = max(1, _MAX_TOKENS // sequences.shape[1] // group_size) * group_size
    base, spent = [], []
    for start in range(0, len(sequences), block):
        part = slice(start, start + block)
        mask = completion_mask[part].float()
        rows = Rows(sequences[part], attention_mask[part], num_tokens, group_size)
        found = model.ref_logps(rows.input_ids, rows.attention_mask, num_tokens, group_size=group_size)
        ref_logps = found.float() * mask
        base.append(ref_logps.sum(dim=-1))
        if greedy:
            spent.append(-base[-1])
        elif transport_kl is not None:
            moved = (transport_kl[part].float() * mask).sum(dim=-1)
            spent.append(moved + _policy_excess(model, rows, mask, ref_logps))
        elif temperature == 1.0 and not _trained(model):
            spent.append(torch.zeros_like(base[-1]))
        else:
            spent.append((_divergence(model, rows, temperature) * mask).sum(dim=-1))
    return Likelihood(torch.cat(base), torch.cat(spent))


def _trained(model: VGFModel) -> bool:
    """Whether the policy is something else than the reference."""
    return model.ref_model is not None or model.policy_adapter is not None


def _policy_excess(model: VGFModel, rows: Rows, mask: Tensor, ref_logps: Tensor) -> Tensor:
    if not _trained(model):
        return torch.zeros(len(mask), device=mask.device)
    with adapter_rows(model.policy, model.policy_adapter):
        logps = rows.logps(model.policy, rows.states(model.policy))
    return ((logps - ref_logps) * mask).sum(dim=-1)


def _divergence(model: VGFModel, rows: Rows, temperature: float) -> Tensor:
    """KL of the policy at a temperature to the reference, `[R, T]`, with the logits of a few states at a time."""
    reference = model.policy if model.ref_model is None else model.ref_model
    with adapter_rows(model.policy, model.policy_adapter):
        policy_states = rows.states(model.policy)
    with adapter_rows(model.policy, None):
        ref_states = rows.states(reference)
    found = []
    for states, others in zip(
        policy_states.flatten(0, 1).split(STATES_AT_A_TIME),
        ref_states.flatten(0, 1).split(STATES_AT_A_TIME),
        strict=True,
    ):
        log_p = (logits_of_states(model.policy, states) / temperature).log_softmax(-1)
        log_mu = logits_of_states(reference, others).log_softmax(-1)
        found.append((log_p.exp() * (log_p - log_mu)).sum(dim=-1))
    return torch.cat(found).view(rows.tokens.shape)
