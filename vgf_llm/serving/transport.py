# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Transport of a serving engine's batch: rows of different requests, each with a budget of its own.

The engine hands over the logits of a decode step and what the value reads of it. Rows of one budget move together
through the processor that `VGFModel.generate` uses; rows without a budget are not touched. Nothing here imports vLLM.
"""

import logging
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vgf_llm.functional import Range
from vgf_llm.generation.processor import TransportProcessor
from vgf_llm.models.config import TransportConfig
from vgf_llm.models.options import TRANSPORT_FIELDS
from vgf_llm.models.value import StateFeatures, ValueModel

_LOG = logging.getLogger(__name__)

# What a request may set, and how far: whatever is within computes in one engine step, without an overflow.
REQUEST_RANGES: dict[str, Range] = {
    "transport_steps": Range(0, 1024, integer=True),
    "step_size": Range(0, 1024, open_low=True),
    "top_k_candidates": Range(1, 1024, integer=True),
    "min_candidate_prob": Range(0, 1, open_high=True),
    "alpha": Range(1e-3, 1e3, optional=True),
    "max_kl": Range(0, 1e3, open_low=True, optional=True),
    "min_entropy": Range(0, 1e3),
}
_BUDGET = Range(0, 1024)  # L * epsilon
_STEP_TO_TARGET = Range(0, 1, open_low=True, hint="With `alpha` a longer step overshoots the target.")
SCORE_TOKEN = "vgf_score_token"


@dataclass(frozen=True)
class ServedRequest:
    """What one request wants: a budget, or the value of `score_token` instead of a sample."""

    transport: TransportConfig
    score_token: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the engine's own logits are what it wants."""
        return self.score_token is None and self.transport.transport_steps == 0


class ServedTransport:
    """Moves the logits of a batch of requests by the value of a saved model, whose policy has V tokens.

    Requests start from the transport `defaults`; raises ValueError if an engine step cannot compute these.

    Example:
        >>> from vgf_llm.models.config import TransportConfig
        >>> from vgf_llm.models.value import build_value
        >>> value = build_value("vocab", width=4, vocab_size=6)
        >>> served = ServedTransport(value, TransportConfig(transport_steps=0), vocab_size=6)
        >>> logits, features = torch.zeros(2, 6), StateFeatures(hidden=torch.ones(2, 4))
        >>> moved = served.apply(logits, features, {1: served.request({"transport_steps": 4})})
        >>> bool((moved[0] == logits[0]).all())
        True
    """

    def __init__(self, value: ValueModel, defaults: TransportConfig, *, vocab_size: int) -> None:
        check_servable(defaults)
        self.value = value
        self.vocab_size = vocab_size
        # Particles are requests of their own here (`n` of the API), and clients select among them.
        self.defaults = replace(defaults, num_particles=1, selection="none")

    def request(self, extra_args: Mapping[str, Any] | None) -> ServedRequest:
        """Reads a request's own parameters; see `read_request`."""
        if self.value.needs_logits:
            check_not_scored(extra_args)
        return read_request(extra_args, self.defaults, vocab_size=self.vocab_size)

    def admitted(self, extra_args: Mapping[str, Any] | None) -> ServedRequest:
        """Reads the parameters of a request that the engine has taken in, where nothing may be raised any more.

        The server checks parameters without the model: a token beyond its vocabulary, or a step that only its own
        defaults forbid, is found here. Such a request gets the base model, and the log says why.
        """
        try:
            return self.request(extra_args)
        except ValueError as error:
            _LOG.error("A request is answered without transport: %s", error)
            return ServedRequest(replace(self.defaults, transport_steps=0))

    @torch.no_grad()
    def apply(self, logits: Tensor, features: StateFeatures, requests: Mapping[int, ServedRequest]) -> Tensor:
        """Moves those rows of `logits` `[R, V]` whose requests have a budget, in place, as engines do.

        `features` are what the value reads, `[R, ...]`: hidden states, or logits of its model and of the policy.
        """
        active = {row: request for row, request in requests.items() if not request.is_plain and row < logits.shape[0]}
        if not active:
            return logits
        read = features.hidden if features.value_logits is None else features.value_logits
        if read is None or read.shape[0] != logits.shape[0]:
            raise ValueError(
                f"`features` has {0 if read is None else read.shape[0]} rows for {logits.shape[0]} rows of logits: the "
                "engine did not compute them in one call. Speculative decoding is not supported with transport; "
                "switch it off."
            )
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, request in active.items():
            if request.score_token is None:
                groups.setdefault(astuple(request.transport), []).append(row)
            else:
                logits[row] = self._scored(logits[row], _select(features, [row]), request.score_token)
        for members in groups.values():
            rows = torch.tensor(members, device=logits.device)
            logits[rows] = self._transport(logits[rows], _select(features, members), active[members[0]].transport)
        return logits

    def _transport(self, logits: Tensor, features: StateFeatures, transport: TransportConfig) -> Tensor:
        tap: Any = SimpleNamespace(features=lambda input_ids, policy_logps: features)
        processor = TransportProcessor(self.value, transport, tap, record=False)
        # Beyond V the engine pads its vocabulary; those columns are no tokens and stay as they are.
        moved = logits.clone()
        moved[:, : self.vocab_size] = processor(None, logits[:, : self.vocab_size])  # type: ignore[arg-type]
        return moved

    def _scored(self, logits: Tensor, features: StateFeatures, token: int) -> Tensor:
        """Two tokens that differ by the value's raw score, so that their log-probabilities carry it to the client."""
        score = self.value.scores(features, torch.tensor([[token]], device=logits.device))[0, 0]
        result = torch.full_like(logits, -torch.inf)
        # A value that is no number must not reach the sampler of the whole batch.
        result[token] = score.to(logits.dtype).nan_to_num()
        result[score_partner(token)] = 0.0
        return result


def _select(features: StateFeatures, rows: list[int]) -> StateFeatures:
    """The features of some rows."""
    of_rows = {name: getattr(features, name) for name in ("hidden", "value_logits", "ref_logits")}
    return replace(features, **{name: x[rows] for name, x in of_rows.items() if x is not None})


def check_not_scored(extra_args: Mapping[str, Any] | None) -> None:
    """Raises ValueError for a request that asks for the score of a `log_ratio` value."""
    if (extra_args or {}).get(SCORE_TOKEN) is not None:
        raise ValueError(
            f"`{SCORE_TOKEN}` cannot be set for a log_ratio value: its score is a sum over all tokens of a response, "
            "and a request has the last one's alone. `VGFModel.score` returns it."
        )


def read_request(
    extra_args: Mapping[str, Any] | None, defaults: TransportConfig, *, vocab_size: int = 2**31
) -> ServedRequest:
    """Reads the parameters of a request, which an engine step computes whatever they are.

    `extra_args` are `SamplingParams.extra_args`, over HTTP `vllm_xargs`. Names that are not transport's belong to other
    extensions of the engine and pass; `defaults` are the transport that the request starts from. Raises ValueError for
    a bad value, and for a field of `TransportConfig` that requests cannot set.
    """
    given = dict(extra_args or {})
    refused = [name for name in TRANSPORT_FIELDS if name in given and name not in REQUEST_RANGES]
    if refused:
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in refused)} cannot be set for a request; what can is "
            f"{', '.join(REQUEST_RANGES)}. For several particles ask for `n` responses and select among them."
        )
    changes = {name: given[name] for name in REQUEST_RANGES if given.get(name) is not None}
    for name, value in changes.items():
        _check(REQUEST_RANGES[name], name, value)
    transport = replace(defaults, **changes)
    _check_budget(transport)
    token = given.get(SCORE_TOKEN)
    if token is not None:
        _check(Range(0, vocab_size, integer=True, open_high=True), SCORE_TOKEN, token)
    return ServedRequest(transport, token)


def score_partner(token: int) -> int:
    """Returns the token whose logit is 0 when `token` is scored: another one, the same for every reader."""
    return 1 if token == 0 else 0


def _check(allowed: Range, name: str, value: Any) -> None:
    """`Range.check`, whose every error a server answers as the client's."""
    try:
        allowed.check(name, value)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _check_budget(transport: TransportConfig) -> None:
    if transport.alpha is not None:
        _check(_STEP_TO_TARGET, "step_size", transport.step_size)
    _check(_BUDGET, "transport_steps` * `step_size", transport.transport_steps * transport.step_size)


def check_servable(transport: TransportConfig) -> None:
    """Raises ValueError for defaults that one engine step cannot compute: spaces of whole responses, interaction of
    particles, and what is beyond what requests may ask for.
    """
    if transport.interaction:
        raise ValueError("`interaction=True` couples the particles of a prompt, which are separate requests here.")
    if transport.space != "logit":
        raise ValueError(f"`space` must be 'logit' to serve, got {transport.space!r}.")
    for name, allowed in REQUEST_RANGES.items():
        _check(allowed, name, getattr(transport, name))
    _check_budget(transport)
