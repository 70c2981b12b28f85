# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A policy and the model that its value reads as one model of vLLM, which reads every token with both.

A request stays one request: its cache blocks hold the keys and values of both models. So whatever the engine does to
requests (prefill in chunks, a shared prefix, preemption, an abort) it does to both models at once.
"""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from vgf_llm.models.tensor_files import read_json
from vgf_llm.serving.captured import CAPTURED

ARCHITECTURE = "PolicyAndValueForCausalLM"
# Of vLLM's `additional_config`: the folder of the value's model, and whether the value reads its logits.
VALUE_MODEL_KEY, LOGITS_KEY = "vgf_value_model", "vgf_value_logits"
_VALUE_PREFIX = "vgf_value."
_LOAD_FORMATS = ("auto", "hf", "safetensors")  # the others read one folder of weights alone


class PolicyAndValueForCausalLM(nn.Module):
    """Two models of one architecture: logits are the policy's, and what the value reads is left in `CAPTURED`.

    The engine's `additional_config` names the value's folder. Raises ValueError for what the two cannot do together.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        from vllm.compilation.backends import set_model_tag
        from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
        from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix

        super().__init__()
        _check_engine(vllm_config)
        folder = vllm_config.additional_config[VALUE_MODEL_KEY]
        self.reads_logits: bool = vllm_config.additional_config[LOGITS_KEY]
        architectures = read_json(Path(folder) / "config.json")["architectures"]

        def build(name: str) -> nn.Module:
            model = init_vllm_registered_model(
                vllm_config, prefix=maybe_prefix(prefix, name), architectures=architectures
            )
            _check_layout(model)
            return model

        self.policy = build("policy")
        with set_model_tag("vgf_value"):  # compiled code of the two is kept apart
            self.value = build("value")
        self.secondary_weights = (DefaultModelLoader.Source(folder, revision=None, prefix=_VALUE_PREFIX),)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """vLLM's interface asks for it; prompts as embeddings are refused."""
        return self.policy.embed_input_ids(input_ids)  # type: ignore[operator]

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Returns the hidden states `[T, 2 D]` of both models, the policy's first."""
        return torch.cat([self.policy(input_ids, positions), self.value(input_ids, positions)], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Maps `[R, 2 D]` to the policy's logits `[R, V]`."""
        of_policy, of_value = (half.contiguous() for half in hidden_states.chunk(2, dim=-1))
        if self.reads_logits:
            CAPTURED.value_logits = self.value.compute_logits(of_value)  # type: ignore[operator]
        logits: Tensor | None = self.policy.compute_logits(of_policy)  # type: ignore[operator]
        CAPTURED.hidden = of_value  # in place of the policy's
        if self.reads_logits and logits is not None:
            CAPTURED.ref_logits = logits.clone()  # the engine writes into the others: a grammar's mask, a logit bias
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads both; the value's weights come with a prefix."""
        loaded: dict[str, set[str]] = {"policy": set(), "value": set()}
        for of_value, own in groupby(weights, key=lambda item: item[0].startswith(_VALUE_PREFIX)):
            name = "value" if of_value else "policy"
            plain = ((key.removeprefix(_VALUE_PREFIX), tensor) for key, tensor in own)
            loaded[name] |= {f"{name}.{key}" for key in getattr(self, name).load_weights(plain)}
        for name, found in loaded.items():
            if not found:
                raise ValueError(f"The engine's loader gave no weights of the {name}.")
        return loaded["policy"] | loaded["value"]


def _check_engine(vllm_config: Any) -> None:
    """Refuses what an engine of two models cannot be asked for, or has not been tried with."""
    load_format = str(vllm_config.load_config.load_format)
    refused = {
        f"`load_format` {load_format!r}, since only {', '.join(_LOAD_FORMATS)} read the weights of both models": (
            load_format not in _LOAD_FORMATS
        ),
        "`quantization`": vllm_config.model_config.quantization is not None,
        "`enable_prompt_embeds`": vllm_config.model_config.enable_prompt_embeds,
        "`speculative_config`": vllm_config.speculative_config is not None,
        "`pipeline_parallel_size` above 1": vllm_config.parallel_config.pipeline_parallel_size > 1,
    }
    for name, asked in refused.items():
        if asked:
            raise ValueError(f"A value with an adapter or a model of its own is not served with {name}. Leave it out.")


def _check_layout(model: nn.Module) -> None:
    from vllm.model_executor.models.interfaces import has_inner_state, supports_multimodal

    if has_inner_state(model) or supports_multimodal(model):
        raise ValueError(
            f"{type(model).__name__} keeps a state of its own or reads more than text. Values with an adapter or a "
            "model of their own are served for decoders with attention over text alone; `vgf export` writes a "
            "log_ratio value as a plain model at L * epsilon = 1."
        )


def check_same_shape(policy: str, value: str | Path, revision: str | None) -> None:
    """Raises ValueError unless the policy and the value's model are of one architecture and shape."""
    mine, other = AutoConfig.from_pretrained(policy, revision=revision), AutoConfig.from_pretrained(value)
    for name in ("architectures", "vocab_size", "hidden_size", "num_hidden_layers"):
        found = [getattr(config, name, None) for config in (mine, other)]
        if found[0] != found[1]:
            raise ValueError(
                f"The policy has `{name}` {found[0]!r} and the model of its value {found[1]!r}. A value with a model "
                "of its own is served if that began as a copy of the policy."
            )
