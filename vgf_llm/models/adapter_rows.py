# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Different LoRA adapters on different rows of one batch, in training and in decoding.

The value of a state and the policy's own logits come from the same weights, once with the value adapter and once
without. Stacking the two as row blocks of one batch reads the weights once. PEFT's own mixed batches refuse training
mode and sort rows by adapter at every layer; here a block is a slice, so that no index is built or copied.

The LoRA layers of a policy get a class whose forward looks up the blocks in force, once, when its `VGFModel` is built.
The blocks stand in a context variable: every thread and every task has its own, and no call changes a layer.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

AdapterBlocks = tuple[str | None, ...]

# The blocks in force, by the key of the policy whose layers they are for.
_BLOCKS: ContextVar[Mapping[object, AdapterBlocks]] = ContextVar("vgf_llm_adapter_rows")
_NONE: Mapping[object, AdapterBlocks] = {}
_PREPARING = threading.Lock()


class RowBlocks(nn.Module):
    """What the class of a LoRA layer is extended by: PEFT's own forward, unless row blocks are in force."""

    rows_key: object

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Runs PEFT's forward, or adds to each row block of `x` `[R, ..., D]` the delta of its own adapter."""
        blocks = _BLOCKS.get(_NONE).get(self.rows_key)
        if blocks is None:
            return super().forward(x, *args, **kwargs)
        layer: Any = self
        result = layer.base_layer(x, *args, **kwargs)
        rows = x.shape[0] // len(blocks)
        for index, adapter in enumerate(blocks):
            if adapter is None or adapter not in layer.lora_A:
                continue
            if len(blocks) == 1:
                return (result + _delta(layer, adapter, x) * layer.scaling[adapter]).to(result.dtype)
            block = slice(index * rows, (index + 1) * rows)
            result[block].add_(_delta(layer, adapter, x[block]), alpha=layer.scaling[adapter])
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles name PEFT's class, since the extended one has no name of its own.
        return _restore, (type(self).__mro__[2],), self.__dict__


@cache
def _extended(kind: Any) -> type:
    return type(kind.__name__, (RowBlocks, kind), {"__module__": kind.__module__})


def _restore(kind: type) -> nn.Module:
    layer: nn.Module = object.__new__(_extended(kind))
    return layer


def _delta(layer: Any, adapter: str, x: Tensor) -> Tensor:
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    x = layer.lora_dropout[adapter](x)
    kind, dtype = x.device.type, down.weight.dtype
    if x.dtype == dtype or torch.is_autocast_enabled(kind):
        return up(down(x))
    if torch.is_grad_enabled() or x.dtype not in (torch.bfloat16, torch.float16):
        return up(down(x.to(dtype)))
    # Nothing trains: an adapter in float32 is rounded to the activations' dtype, which takes far less memory than
    # activations in float32, and is what autocast does in training.
    with torch.autocast(kind, dtype=x.dtype):
        return up(down(x))


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """Returns the LoRA layers of `model`, in module order."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def is_linear(module: nn.Module) -> bool:
    """Tells whether a module is a linear layer, adapted or not, and nothing more.

    Some layouts derive routers of experts from linear layers, with a forward that returns more than one tensor.
    """
    base: Any = module.base_layer if isinstance(module, LoraLayer) else module
    if not isinstance(base, nn.Linear | Conv1D):
        return isinstance(module, LoraLayer)  # a quantized layer that PEFT knows
    if not type(base).__module__.startswith(("transformers.models.", "transformers_modules.")):
        return True
    with torch.no_grad():
        weight = base.weight
        return not hasattr(weight, "ds_id") and isinstance(base(weight.new_zeros(1, base.in_features)), Tensor)


def prepare_rows(model: nn.Module) -> object:
    """Lets the LoRA layers of a model look up row blocks under the key that is returned.

    What they compute without blocks stays as it was; layers that are prepared already stay as they are.
    """
    with _PREPARING:
        layers = lora_layers(model)
        key = next((layer.rows_key for layer in layers if isinstance(layer, RowBlocks)), None) or object()
        for layer in layers:
            if not isinstance(layer, RowBlocks):
                layer.rows_key = key
                kind: Any = type(layer)
                layer.__class__ = _extended(kind)
        return key


@contextmanager
def adapter_rows(model: nn.Module, *blocks: str | None) -> Iterator[None]:
    """Runs every forward inside the context with one adapter per row block, in this thread and task alone.

    `blocks` names the adapter of each of `len(blocks)` equal, consecutive row blocks, `None` for the bare base model. A
    model without LoRA layers passes through untouched. Raises ValueError if adapters are merged into the base weights.
    """
    if any(layer.merged for layer in lora_layers(model)):
        raise ValueError("`model` has merged adapters, which no row can leave out; call `unmerge_adapter()` first.")
    with _in_force({**_BLOCKS.get(_NONE), prepare_rows(model): blocks}):
        yield


@contextmanager
def _in_force(blocks: Mapping[object, AdapterBlocks]) -> Iterator[None]:
    token = _BLOCKS.set(blocks)
    try:
        yield
    finally:
        _BLOCKS.reset(token)


def recompute_context() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """A `context_fn` for `torch.utils.checkpoint`: recomputation in backward sees the blocks of the forward.

    The backward may run in another thread, which has blocks of its own.
    """
    return nullcontext(), _in_force(_BLOCKS.get(_NONE))


def adapter_parameters(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The parameters of one LoRA adapter, by their names in `model.named_parameters()`.

    This is the one place that knows which they are; a model without LoRA layers has none.
    """
    own = {
        id(parameter)
        for layer in lora_layers(model)
        for parts in (layer.lora_A, layer.lora_B)
        if adapter in parts
        for parameter in parts[adapter].parameters()
    }
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}


_BEYOND_PLAIN_LORA = ("bias", "layer_replication", "modules_to_save", "target_parameters", "trainable_token_indices")
_STARTS = (True, False, "gaussian")  # the base stays as it is


def check_plain_lora(model: PeftModel, adapter: str) -> None:
    """Raises ValueError unless `adapter` is LoRA on linear layers and nothing else: rows of that can be blocked.

    Refused are other kinds (IA3, DoRA), and LoRA on embeddings, the output embedding, routed experts, biases or modules
    saved whole.
    """
    if adapter not in model.peft_config:
        raise ValueError(f"`adapter` {adapter!r} is not in the model; it has {sorted(model.peft_config)}.")
    found = beyond_plain_lora(model.peft_config[adapter])
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    if any(adapter in layer.lora_embedding_A or adapter in layer.lora_variant for layer in layers.values()):
        found.append("an embedding or a variant among the target modules")
    output = model.get_output_embeddings()
    if isinstance(output, LoraLayer) and adapter in output.lora_A:
        found.append("the output embedding among the target modules")  # the frozen embedding scores chosen tokens
    if any(adapter in layer.lora_A and not is_linear(layer) for layer in layers.values()):
        found.append("a router among the target modules")  # it returns more than one tensor
    if any("experts" in name.split(".") and adapter in layer.lora_A for name, layer in layers.items()):
        found.append("routed experts among the target modules")  # their rows are tokens, in no order of the batch's
    if found:
        raise not_plain_lora(adapter, found)


def not_plain_lora(adapter: str, found: list[str]) -> ValueError:
    """The error for an adapter that asks for more than row blocks can give."""
    return ValueError(
        f"Adapter {adapter!r} must be plain LoRA on linear layers over an untouched base, found {', '.join(found)}. "
        "Use LoraConfig(target_modules='all-linear'), with `init_lora_weights` True or 'gaussian', or merge the "
        "adapter into the policy with merge_and_unload()."
    )


def beyond_plain_lora(config: Any) -> list[str]:
    """Names the settings of a PEFT configuration that ask for more than plain LoRA over an untouched base."""
    if getattr(config, "peft_type", None) != "LORA":
        return [type(config).__name__]
    start = config.init_lora_weights
    found = [] if start in _STARTS else [f"init_lora_weights={start!r}"]
    settings = {name: getattr(config, name, None) for name in _BEYOND_PLAIN_LORA}
    return found + [name for name, value in settings.items() if value and value != "none"]
