# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""How likely responses are under the reference, and how far from it the distribution that they were drawn from is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vgf_llm.models import VGFModel
from vgf_llm.models.adapter_rows import adapter_rows
from vgf_llm.models.language_model import accepts_argument, inner_model, position_ids_from_mask

_MAX_LOGITS = 2**26  # entries of one block of [R, T, V], unless one row has more


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
    """Scores finished responses under the reference; logits exist for a bounded block of rows at a time.

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
    mask = completion_mask.float()
    block = max(1, _MAX_LOGITS // (max(num_tokens, 1) * model.vgf_config.vocab_size))
    rows = [slice(start, start + block) for start in range(0, len(sequences), block)]
    groups = max(1, block // group_size) * group_size
    parts = zip(sequences.split(groups), attention_mask.split(groups), strict=True)
    ref_logps = torch.cat([model.ref_logps(*part, num_tokens, group_size=group_size) for part in parts]).float() * mask
    base = ref_logps.sum(dim=-1)
    if greedy:
        return Likelihood(base, -base)

    def blocks(logits: Callable[..., Tensor]) -> Iterator[Tensor]:
        return (logits(model, sequences[part], attention_mask[part], num_tokens) for part in rows)

    if transport_kl is not None:
        spent = (transport_kl.float() * mask).sum(dim=-1)
        if _trained(model):
            chosen = sequences[:, -num_tokens:].unsqueeze(-1)
            pairs = zip(blocks(_policy_logits), rows, strict=True)
            logps = [found.log_softmax(dim=-1).gather(-1, chosen[part]).squeeze(-1) for found, part in pairs]
            spent = spent + ((torch.cat(logps) - ref_logps) * mask).sum(dim=-1)
        return Likelihood(base, spent)
    if temperature == 1.0 and not _trained(model):
        return Likelihood(base, torch.zeros_like(base))
    divergences = []
    for policy, reference in zip(blocks(_policy_logits), blocks(_reference_logits), strict=True):
        log_p, log_mu = (policy / temperature).log_softmax(-1), reference.log_softmax(-1)
        divergences.append((log_p.exp() * (log_p - log_mu)).sum(dim=-1))
    return Likelihood(base, (torch.cat(divergences) * mask).sum(dim=-1))


def _trained(model: VGFModel) -> bool:
    """Whether the policy is something else than the reference."""
    return model.ref_model is not None or model.policy_adapter is not None


def _policy_logits(model: VGFModel, sequences: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
    with adapter_rows(model.policy, model.policy_adapter):
        return _logits(model.policy, sequences, attention_mask, num_tokens)


def _reference_logits(model: VGFModel, sequences: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
    if model.ref_model is not None:
        return _logits(model.ref_model, sequences, attention_mask, num_tokens)
    with adapter_rows(model.policy, None):
        return _logits(model.policy, sequences, attention_mask, num_tokens)


def _logits(model: nn.Module, sequences: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
    """`[R, T, V]` of the model's own forward, those that the response's tokens were chosen by."""
    inner = inner_model(model)
    options: dict[str, Any] = {"use_cache": False}
    if accepts_argument(inner, "position_ids"):
        options["position_ids"] = position_ids_from_mask(attention_mask)
    if accepts_argument(inner, "logits_to_keep"):
        options["logits_to_keep"] = num_tokens + 1
    logits = inner(input_ids=sequences, attention_mask=attention_mask, **options).logits
    return logits[:, -num_tokens - 1 : -1].float()
