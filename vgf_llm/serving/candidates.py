# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Sampling within a model's own candidates inside vLLM, as rounds of the value sample.

`vllm serve ... --logits-processors vgf_llm.serving.candidates:CandidateLogitsProcessor` offers it to requests. The
class is made when vLLM looks its name up, so that this module can be imported where vLLM is not installed.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vgf_llm.generation.candidates import CANDIDATES_ARGUMENT, CandidateProcessor
from vgf_llm.models.sampling import Sampling


def __getattr__(name: str) -> Any:
    if name == "CandidateLogitsProcessor":
        return _processor_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def requested_candidates(extra_args: Mapping[str, Any] | None) -> tuple[int, float] | None:
    """Reads which tokens a request may take: K and a least probability, or `None` for all; raises ValueError.

    Example:
        >>> requested_candidates({"own_candidates": [40, 0.02]})
        (40, 0.02)
    """
    given = (extra_args or {}).get(CANDIDATES_ARGUMENT)
    if given is None:
        return None
    try:
        return Sampling(candidates=tuple(given)).candidates
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{CANDIDATES_ARGUMENT}` must be K and a least probability, got {given!r}: {error}"
        ) from error


def keep_candidates(logits: Tensor, requests: Mapping[int, tuple[int, float]]) -> Tensor:
    """Leaves the candidates of those rows of `logits` `[R, V]` that have some; changes them in place, as engines do.

    Example:
        >>> keep_candidates(torch.tensor([[0.5, 0.3, 0.2]] * 2).log(), {1: (2, 0.0)}).exp()
        tensor([[0.5000, 0.3000, 0.2000],
                [0.5000, 0.3000, 0.0000]])
    """
    for candidates in set(requests.values()):
        rows = torch.tensor([row for row, own in requests.items() if own == candidates], device=logits.device)
        logits[rows] = CandidateProcessor(*candidates)(rows, logits[rows])
    return logits


@cache
def _processor_class() -> type:
    from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

    class CandidateLogitsProcessor(LogitsProcessor):
        """A request's own candidates, ahead of its temperature."""

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            """Refuses bad parameters while the request is still the client's."""
            requested_candidates(sampling_params.extra_args)

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self.requests: dict[int, tuple[int, float]] = {}

        def is_argmax_invariant(self) -> bool:
            """Says no, though the likeliest token stays: vLLM runs processors that say yes after the temperature."""
            return False

        def update_state(self, batch_update: Any) -> None:
            """Follows requests as they enter, move within and leave the batch."""
            process_dict_updates(
                self.requests, batch_update, lambda params, prompt, output: requested_candidates(params.extra_args)
            )

        def apply(self, logits: Tensor) -> Tensor:
            """Cuts the batch's logits `[R, V]`."""
            return keep_candidates(logits, self.requests)

    CandidateLogitsProcessor.__module__, CandidateLogitsProcessor.__qualname__ = __name__, "CandidateLogitsProcessor"
    return CandidateLogitsProcessor
