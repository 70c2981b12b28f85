# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Different LoRA adapters on different rows of one batch, in training and in decoding.

The value of a state and the policy's own logits come from the same weights, once with the value adapter and once
without. Stacking the two as row blocks of one batch reads the weights once. PEFT's own mixed batches refuse training
mode and sort rows by adapter at every layer; here a layer's forward is replaced for as long as the context lasts, and a
block is a slice, so that no index is built or copied.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

AdapterBlocks = tuple[str | None, ...]
_BEYOND_PLAIN_LORA = ("bias", "modules_to_save", "target_parameters", "trainable_token_indices")


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """Returns the LoRA layers of `model`, in module order."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def check_plain_lora(model: PeftModel, adapter: str) -> None:
    """Checks that `adapter` is LoRA on linear layers and nothing else, the form whose rows can be blocked.

    Args:
        model: The PEFT model that holds the adapter.
        adapter: The adapter's name.

    Raises:
        ValueError: If the adapter is missing, is of another kind (IA3, DoRA), or touches more than linear layers
            (embeddings, the output embedding, biases, modules saved whole).
    """
    if adapter not in model.peft_config:
        raise ValueError(f"`adapter` {adapter!r} is not in the model; it has {sorted(model.peft_config)}.")
    config = model.peft_config[adapter]
    found = [name for name in _BEYOND_PLAIN_LORA if getattr(config, name, None) not in (None, False, "none", [], {})]
    if not isinstance(config, LoraConfig):
        found = [type(config).__name__]
    if any(adapter in layer.lora_embedding_A or adapter in layer.lora_variant for layer in lora_layers(model)):
        found.append("an embedding or a variant among the target modules")
    output = model.get_output_embeddings()
    if isinstance(output, LoraLayer) and adapter in output.lora_A:
        found.append("the output embedding among the target modules")  # chosen tokens are scored by its weight alone
    if found:
        raise ValueError(
            f"Adapter {adapter!r} must be plain LoRA on linear layers, found {', '.join(found)}. Use "
            "LoraConfig(target_modules='all-linear'), or merge the adapter into the policy with merge_and_unload()."
        )


def _blocked_forward(layer: LoraLayer, blocks: AdapterBlocks) -> Callable[..., Tensor]:
    """Returns a forward for `layer` that adds to each row block the delta of its own adapter."""
    present = [(index, name) for index, name in enumerate(blocks) if name is not None and name in layer.lora_A]

    def delta(adapter: str, x: Tensor) -> Tensor:
        down, up = layer.lora_A[adapter], layer.lora_B[adapter]
        return up(down(layer.lora_dropout[adapter](x.to(down.weight.dtype))))

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = layer.base_layer(x, *args, **kwargs)
        rows = x.shape[0] // len(blocks)
        for index, adapter in present:
            if len(blocks) == 1:
                return (result + delta(adapter, x) * layer.scaling[adapter]).to(result.dtype)
            block = slice(index * rows, (index + 1) * rows)
            result[block].add_(delta(adapter, x[block]), alpha=layer.scaling[adapter])
        return result

    return forward


@torch.compiler.disable
def _replace_forward(layer: LoraLayer, forward: Callable[..., Tensor]) -> Callable[[], None]:
    """Gives `layer` another forward and returns what undoes it."""
    own = layer.__dict__.get("forward")
    layer.forward = forward

    @torch.compiler.disable
    def restore() -> None:
        if own is None:
            del layer.forward
        else:
            layer.forward = own

    return restore


@contextmanager
def adapter_rows(model: nn.Module, *blocks: str | None) -> Iterator[None]:
    """Runs every forward inside the context with one adapter per row block.

    Args:
        model: A model with LoRA layers; any other model passes through untouched.
        *blocks: The adapter of each of `len(blocks)` equal, consecutive row blocks; `None` for the bare base model.

    Yields:
        Nothing. Batches inside must have a multiple of `len(blocks)` rows.

    Raises:
        ValueError: If adapters are merged into the base weights.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> import torch
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> base = LlamaForCausalLM(config)
        >>> model = get_peft_model(base, LoraConfig(target_modules="all-linear"), adapter_name="value")
        >>> ids = torch.ones(1, 3, dtype=torch.long)
        >>> with adapter_rows(model, None, "value"):
        ...     out = model.get_base_model()(ids.repeat(2, 1)).logits
        >>> out.shape
        torch.Size([2, 3, 16])
    """
    layers = lora_layers(model)
    if not layers:
        yield
        return
    if any(layer.merged for layer in layers):
        raise ValueError("`model` has merged adapters, which no row can leave out; call `unmerge_adapter()` first.")
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(_replace_forward(layer, _blocked_forward(layer, blocks)))
        yield


def recompute_context(
    model: nn.Module, blocks: AdapterBlocks
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Returns a `context_fn` for `torch.utils.checkpoint`, so that recomputation in backward sees the same blocks.

    Args:
        model: The model that is checkpointed.
        blocks: The blocks in force during the forward.

    Returns:
        A function that gives the forward's context (nothing to add) and the recomputation's.
    """
    return lambda: (nullcontext(), adapter_rows(model, *blocks))
