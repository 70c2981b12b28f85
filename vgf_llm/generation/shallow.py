# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""A model's object for one call: hooks on it are seen by nobody else, and its weights are the model's own."""

import copy
import functools
import inspect
from types import MethodType
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

Module = TypeVar("Module", bound=nn.Module)


def shallow_copy(model: PreTrainedModel, part: str = "") -> PreTrainedModel:
    """Copies a model's own object and those on the way to one of its parts, named; everything else is shared.

    Hooks and attributes that are put on the copy do not reach the model, so that several threads can each have one.
    """
    copied = _own_object(model)
    parent: nn.Module = copied
    for name in part.split(".") if part else ():
        child = _own_object(parent.get_submodule(name))
        parent._modules[name] = child
        parent = child
    return copied


def _own_object(module: Module) -> Module:
    copied: Module = object.__new__(type(module))  # no class has a say: FSDP's would build a module anew
    copied.__dict__.update(vars(module))
    for name, value in list(vars(copied).items()):
        if name == "_modules" or "_hooks" in name:
            copied.__dict__[name] = copy.copy(value)
    # Forwards that belong to the object call the object that they were made for.
    copied._compiled_call_impl = None
    for name in ("_old_forward", "forward"):
        own = vars(module).get(name)
        if isinstance(own, functools.partial) and own.args[:1] == (module,):  # accelerate's, of a device map
            copied.__dict__[name] = functools.partial(own.func, copied, *own.args[1:], **own.keywords)
        elif inspect.ismethod(own) and own.__self__ is module:
            copied.__dict__[name] = MethodType(own.__func__, copied)
        elif own is not None:  # a compiled one
            del copied.__dict__[name]
    return copied
