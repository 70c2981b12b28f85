# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Token-level transport as an ordinary LogitsProcessor, so that every `generate` feature works with it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from vgf_llm.functional import cap_kl, masked_log_softmax
from vgf_llm.generation.candidates import candidate_tokens
from vgf_llm.generation.taps import FeatureTap
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.value import ValueModel
from vgf_llm.spaces import DecodeState, LogitSpace

_EMPTIED = -1e30  # a displacement that leaves no probability at any scale that `cap_kl` can return but 0


@dataclass(frozen=True)
class _Record:
    ids: Tensor  # [R, K]
    scores: Tensor  # [R, K]
    kl: Tensor  # [R]


class TransportProcessor(LogitsProcessor):
    """Replaces the base's next-token distribution by the transported one.

    Runs after the processors that `generate` builds (penalties, suppressed tokens), so that the base it starts from is
    what they leave, and before temperature and top-p, which act on the transported distribution. It asks the host for
    nothing. With `record` values and KL of every step are kept for `token_scores` and `token_kl`.
    """

    def __init__(
        self,
        value: ValueModel,
        transport: TransportConfig,
        tap: FeatureTap,
        *,
        control: str | None = None,
        record: bool = True,
    ) -> None:
        self.space = LogitSpace(value, transport, control=control)
        self.tap = tap
        self.transport = transport
        self.record = record
        self._reads_raw_logits = False
        self._records: list[_Record] = []

    def install(self, copied: PreTrainedModel) -> None:
        """Hooks the copy of the policy that is going to generate, and sees what runs ahead of this processor."""
        self.tap.install(copied)
        prepare = copied._get_logits_processor

        def prepared(*args: Any, **kwargs: Any) -> Any:
            found = prepare(*args, **kwargs)
            self._reads_raw_logits = found[0] is self
            return found

        copied._get_logits_processor = prepared

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Maps the base's logits `[R, V]` to the transported ones; tokens that are no candidates get `-inf`."""
        config = self.transport
        log_probs = scores.float().log_softmax(dim=-1)
        ids, mask, base = candidate_tokens(log_probs, top_k=config.top_k_candidates, min_prob=config.min_candidate_prob)
        state = DecodeState(
            candidate_ids=ids,
            candidate_mask=mask,
            logits=base,
            features=self.tap.features(input_ids, log_probs if self._reads_raw_logits else None),
            num_particles=config.num_particles,
        )
        moved = self.space.transport(state)
        logits, untouched = self._within_budget(moved.logits, state, log_probs)
        result = torch.full_like(log_probs, -torch.inf).scatter_(-1, ids, logits)
        if untouched is not None:
            result = torch.where(untouched.unsqueeze(-1), log_probs, result)
        if self.record:
            self._keep(state, moved.scores, logits, untouched)
        return result.to(scores.dtype)

    def _within_budget(self, logits: Tensor, state: DecodeState, log_probs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Applies the KL cap and the entropy gate; returns candidate logits and the rows left to the base."""
        config = self.transport
        untouched = None
        if config.min_entropy > 0:
            entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(dim=-1)
            untouched = entropy < config.min_entropy
        if config.max_kl is None:
            return logits, untouched
        mask = state.candidate_mask
        start = masked_log_softmax(state.logits, mask)
        # A candidate that transport drove to probability zero still has a finite place on the path to it.
        direction = torch.where(mask, logits - start, torch.zeros_like(logits)).clamp(min=-1e4)
        # All that is no candidate is one more entry of the reference, which any move empties: its share of the KL is
        # the price of the candidate mask. Where that alone is above the cap no scale is allowed.
        inside = state.logits.masked_fill(~mask, -torch.inf).logsumexp(dim=-1, keepdim=True).exp()
        outside = torch.log1p(-inside.clamp(max=1))
        scale = cap_kl(
            torch.cat([state.logits, outside], dim=-1),
            torch.cat([direction, torch.full_like(outside, _EMPTIED)], dim=-1),
            config.max_kl,
            candidate_mask=torch.cat([mask, outside > -torch.inf], dim=-1),
        )
        logits = masked_log_softmax(start + scale.unsqueeze(-1) * direction, mask)
        over = scale == 0
        return logits, over if untouched is None else over | untouched

    def _keep(self, state: DecodeState, scores: Tensor, logits: Tensor, untouched: Tensor | None) -> None:
        probs = logits.exp()
        kl = torch.where(probs > 0, probs * (logits - state.logits), torch.zeros_like(probs)).sum(dim=-1).clamp(min=0)
        if untouched is not None:
            kl = torch.where(untouched, torch.zeros_like(kl), kl)
        self._records.append(_Record(state.candidate_ids, scores, kl))

    def token_kl(self, mask: Tensor) -> Tensor:
        """Returns the KL to the base spent at every token `[R, T]`, in nats, 0 where `mask` `[R, T]` is."""
        return torch.stack([record.kl for record in self._records[: mask.shape[1]]], dim=-1) * mask

    def token_scores(self, tokens: Tensor, mask: Tensor) -> Tensor | None:
        """Returns the raw scores of chosen tokens `[R, T]`, or `None` if one within `mask` `[R, T]` is no candidate."""
        records = self._records[: tokens.shape[1]]
        match = torch.stack([record.ids for record in records], dim=1) == tokens.unsqueeze(-1)
        if not bool((match.any(dim=-1) | ~mask.bool()).all()):
            return None
        scores = torch.stack([record.scores for record in records], dim=1)
        return torch.where(match, scores, torch.zeros_like(scores)).sum(dim=-1) * mask
