# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How likely responses are under the reference, and how far from it the distribution that they were drawn from is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vgf_llm.models import VGFModel
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.language_model import last_hidden_states, project_hidden

_MAX_LOGITS = 2**26  # entries of one block of [R, T, V]


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
) -> Likelihood:
    """Scores finished responses under the reference, in blocks of rows that bound the memory for logits.

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

    Returns:
        A `Likelihood`.
    """
    num_tokens = completion_mask.shape[1]
    vocab = model.vgf_config.vocab_size
    rows = max(1, _MAX_LOGITS // (max(num_tokens, 1) * vocab))
    base, spent = [], []
    for start in range(0, len(sequences), rows):
        part = slice(start, start + rows)
        mask = completion_mask[part].float()
        ref_logps = model.ref_logps(sequences[part], attention_mask[part], num_tokens).float() * mask
        base.append(ref_logps.sum(dim=-1))
        if greedy:
            spent.append(-base[-1])
        elif transport_kl is not None:
            moved = (transport_kl[part].float() * mask).sum(dim=-1)
            spent.append(moved + _policy_excess(model, sequences[part], attention_mask[part], mask, ref_logps))
        elif temperature == 1.0 and not _trained(model):
            spent.append(torch.zeros_like(base[-1]))
        else:
            log_p = (
                _policy_logits(model, sequences[part], attention_mask[part], num_tokens) / temperature
            ).log_softmax(-1)
            log_mu = _reference_logits(model, sequences[part], attention_mask[part], num_tokens).log_softmax(-1)
            spent.append((((log_p.exp() * (log_p - log_mu)).sum(dim=-1)) * mask).sum(dim=-1))
    return Likelihood(torch.cat(base), torch.cat(spent))


def _trained(model: VGFModel) -> bool:
    """Whether the policy is something else than the reference."""
    return model.ref_model is not None or model.policy_adapter is not None


def _policy_excess(model: VGFModel, ids: Tensor, attention: Tensor, mask: Tensor, ref_logps: Tensor) -> Tensor:
    if not _trained(model):
        return torch.zeros(len(ids), device=ids.device)
    logps = _policy_logits(model, ids, attention, mask.shape[1]).log_softmax(dim=-1)
    tokens = ids[:, -mask.shape[1] :].unsqueeze(-1)
    return ((logps.gather(-1, tokens).squeeze(-1) - ref_logps) * mask).sum(dim=-1)


def _policy_logits(model: VGFModel, ids: Tensor, attention: Tensor, num_tokens: int) -> Tensor:
    with adapter_rows(model.policy, model.policy_adapter):
        hidden = last_hidden_states(model.policy, ids, attention)
    return project_hidden(model.policy, hidden[:, -num_tokens - 1 : -1]).float()


def _reference_logits(model: VGFModel, ids: Tensor, attention: Tensor, num_tokens: int) -> Tensor:
    if model.ref_model is not None:
        hidden = last_hidden_states(model.ref_model, ids, attention)
        return project_hidden(model.ref_model, hidden[:, -num_tokens - 1 : -1]).float()
    with adapter_rows(model.policy, None):
        hidden = last_hidden_states(model.policy, ids, attention)
    return project_hidden(model.policy, hidden[:, -num_tokens - 1 : -1]).float()
