# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Whole weights where training holds shards of them: for sampling, for scoring and for saving.

DDP and ZeRO-1/2 keep whole parameters on every process and need nothing. ZeRO-3 and FSDP2 keep a shard, and would
gather every layer again for every token that is sampled; here they are gathered once and stay until the phase ends.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from vgf_llm._compat import unwrap_model_for_generation

# Methods of a `VGFModel` that run its layers outside `forward`.
FORWARD_METHODS = ("generate", "score", "sequence_scores", "ref_logps", "candidate_values")


def is_zero3(accelerator: Accelerator) -> bool:
    """Tells whether DeepSpeed shards the parameters themselves."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return accelerator.distributed_type == DistributedType.DEEPSPEED and plugin is not None and plugin.zero_stage == 3


def is_sharded(parameter: Tensor) -> bool:
    """Tells whether ZeRO-3 holds a shard in place of a parameter."""
    return hasattr(parameter, "ds_id")


def whole_parameters(
    model: nn.Module, accelerator: Accelerator, *, gather_deepspeed3_params: bool = True, **kwargs: Any
) -> AbstractContextManager[Any]:
    """Gathers sharded parameters once, for as long as the context lasts.

    Args:
        model: The model as training wrapped it.
        accelerator: The accelerator.
        gather_deepspeed3_params: Whether ZeRO-3 gathers; if not, every forward gathers layer by layer.
        **kwargs: Handed to TRL's `unwrap_model_for_generation`.

    Returns:
        A context.
    """
    if isinstance(model, FSDPModule):
        return _kept_unsharded(model)
    return unwrap_model_for_generation(model, accelerator, gather_deepspeed3_params=gather_deepspeed3_params, **kwargs)


@contextmanager
def _kept_unsharded(model: FSDPModule) -> Iterator[nn.Module]:
    """Lets the first forward gather each layer, and keeps what it gathered until the context ends."""
    root: Any = model
    for name in FORWARD_METHODS:
        if hasattr(root, name) and name not in root.__dict__:  # registering twice would nest the hooks
            register_fsdp_forward_method(root, name)
    shards = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield root
    finally:
        for module in shards:
            module.reshard()
            # As `fully_shard` sets it: the root's parameters are needed again at once, by the backward.
            module.set_reshard_after_forward(module is not root, recurse=False)


def whole_state_dict(model: nn.Module, *, keep: bool, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Collects whole parameters on the CPU, one at a time; every process has to take part.

    Args:
        model: The model without the wrappers of training.
        keep: Whether this process needs the result; the others only give their shards.
        wanted: Which names are collected.

    Returns:
        Parameters and buffers under the names of `model.state_dict()`, tied ones as one tensor; empty unless `keep`.
    """
    copies: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not wanted(name):
            continue
        if id(tensor) not in copies:
            with _gathered(tensor):
                copies[id(tensor)] = tensor.detach().to("cpu", copy=True) if keep else torch.empty(0)
        if keep:
            state[name] = copies[id(tensor)]
    return state


def _gathered(tensor: Tensor) -> AbstractContextManager[Any]:
    if not is_sharded(tensor):
        return nullcontext()
    import deepspeed  # imported where it is needed: its import initialises devices

    return deepspeed.zero.GatheredParameters([tensor])
