# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Whole weights where training holds shards of them: for sampling, for scoring and for saving.

DDP and ZeRO-1/2 keep whole parameters on every process and need nothing. ZeRO-3 and FSDP2 keep a shard, and would
gather every layer again for every token that is sampled; here they are gathered once and stay until the phase ends.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, patch_environment
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from vgf_llm._compat import unwrap_model_for_generation


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
    """Gathers the sharded parameters of a model, as training wrapped it, once, for as long as the context lasts.

    Without `gather_deepspeed3_params` every forward under ZeRO-3 gathers layer by layer.
    """
    if isinstance(model, FSDPModule):
        return _kept_unsharded(model)
    return unwrap_model_for_generation(model, accelerator, gather_deepspeed3_params=gather_deepspeed3_params, **kwargs)


@contextmanager
def _kept_unsharded(model: FSDPModule) -> Iterator[nn.Module]:
    """Gathers every layer at once and keeps it until the context ends.

    Entering is the one collective: no forward in the context communicates, so that processes may run different numbers
    of them, or none.
    """
    root: Any = model
    # The first module that runs a forward takes itself for the root, and here that may be a layer.
    root._get_fsdp_state()._lazy_init()
    shards = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield root
    finally:
        for module in shards:
            module.reshard()
            # As `fully_shard` sets it: the root's parameters are needed again at once, by the backward.
            module.set_reshard_after_forward(module is not root, recurse=False)


def whole_state_dict(model: nn.Module, *, keep: bool, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Collects the wanted of `model.state_dict()` whole on the CPU, one at a time, tied ones as one tensor.

    Every process has to take part; one that does not `keep` the result only gives its shards, and gets nothing.
    """
    copies: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not wanted(name):
            continue
        if id(tensor) not in copies:
            with whole(tensor) as full:
                copies[id(tensor)] = full.detach().to("cpu", copy=True) if keep else torch.empty(0)
        if keep:
            state[name] = copies[id(tensor)]
    return state


@contextmanager
def whole(tensor: Tensor) -> Iterator[Tensor]:
    """Gives the whole of a tensor of which every process may hold a shard; every process has to take part."""
    if isinstance(tensor, DTensor):
        yield cast(DTensor, tensor.detach()).full_tensor()
    elif is_sharded(tensor):
        import deepspeed  # imported where it is needed: its import initialises devices

        with deepspeed.zero.GatheredParameters([tensor]):
            yield tensor
    else:
        yield tensor


def load_deepspeed_shards(engine: Any, directory: str) -> None:
    """Loads DeepSpeed's shards of a checkpoint, without the frozen weights that they lack.

    DeepSpeed unpickles them without limits, so that a foreign file could run code. Here only tensors, plain data and
    the classes that DeepSpeed itself puts in are read; anything else raises `pickle.UnpicklingError`.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    # The variable is the only way past the argument that DeepSpeed gives to torch.load.
    with patch_environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"), torch.serialization.safe_globals(known):
        deepspeed_load_checkpoint(engine, directory, load_module_strict=False)
