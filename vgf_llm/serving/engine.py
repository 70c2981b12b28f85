# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""vLLM's side of serving: a V1 logits processor that moves each request's row by its own budget.

vLLM names classes as `module:name` and looks the name up when the engine starts. `VGFLogitsProcessor`, and
`VGFRatioLogitsProcessor` for `log_ratio` values, are made at that moment, so that this module can be imported,
documented and tested where vLLM is not installed.
"""

from functools import cache
from typing import Any

from torch import Tensor

from vgf_llm.models.config import TransportConfig
from vgf_llm.serving.artefacts import MODEL_KEY, load_served_value
from vgf_llm.serving.captured import CAPTURED
from vgf_llm.serving.plugin import register
from vgf_llm.serving.transport import ServedRequest, ServedTransport, check_not_scored, read_request


def __getattr__(name: str) -> Any:
    if name in ("VGFLogitsProcessor", "VGFRatioLogitsProcessor"):
        return _processor_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _processor_class(name: str) -> type:
    from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

    register()

    class VGFLogitsProcessor(LogitsProcessor):
        """Transport inside the engine."""

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            """Refuses bad parameters while the request is still the client's."""
            if name == "VGFRatioLogitsProcessor":
                check_not_scored(sampling_params.extra_args)
            read_request(sampling_params.extra_args, TransportConfig())

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            path = (vllm_config.additional_config or {}).get(MODEL_KEY)
            if path is None:
                raise ValueError(
                    f"`additional_config` names no saved VGF model; give {{'{MODEL_KEY}': PATH}}, as "
                    "`vgf serve PATH` and `engine_arguments(PATH, view)` do."
                )
            value, config = load_served_value(path)
            self.served = ServedTransport(value.to(device), config.transport, vocab_size=config.vocab_size)
            self.requests: dict[int, ServedRequest] = {}

        def is_argmax_invariant(self) -> bool:
            """Says that greedy decoding needs it too."""
            return False

        def update_state(self, batch_update: Any) -> None:
            """Follows requests as they enter, move within and leave the batch."""
            process_dict_updates(
                self.requests, batch_update, lambda params, prompt, output: self.served.admitted(params.extra_args)
            )

        def apply(self, logits: Tensor) -> Tensor:
            """Moves the batch's logits `[R, V]`."""
            return apply_captured(self.served, logits, self.requests)

    VGFLogitsProcessor.__module__, VGFLogitsProcessor.__qualname__ = __name__, name
    return VGFLogitsProcessor


def apply_captured(served: ServedTransport, logits: Tensor, requests: dict[int, ServedRequest]) -> Tensor:
    """Moves a batch `[R, V]` by what its logits came from."""
    if all(request.is_plain for request in requests.values()):
        return logits
    return served.apply(logits, CAPTURED.features(served.value, served.vocab_size), requests)
