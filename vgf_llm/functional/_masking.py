# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Softmax over a subset of entries, without NaN in values or gradients."""

import torch
from torch import Tensor

from ._checks import check_shape, checks_values


def as_mask(name: str, mask: Tensor | None, like: Tensor, like_name: str) -> Tensor:
    """The boolean form of `mask` (bool or 0/1), all True for None; raises ValueError on another shape than `like`."""
    if mask is None:
        return torch.ones_like(like, dtype=torch.bool)
    check_shape(name, mask, like.shape, like_name)
    return mask.bool()


def check_logits(name: str, logits: Tensor, mask: Tensor) -> None:
    """Raises ValueError on NaN or +inf inside the mask, or on rows without one finite entry there, where it looks."""
    if not checks_values(per_token=True):
        return
    # One comparison finds both, because NaN < inf is false.
    bad = ~(logits < torch.inf) & mask
    if bool(bad.any()):
        raise ValueError(
            f"{name} must hold no NaN and no +inf, but {int(bad.sum())} entries (shape {tuple(logits.shape)}) do; "
            f"-inf marks an entry of probability zero."
        )
    empty = mask.any(dim=-1) & ~((logits > -torch.inf) & mask).any(dim=-1)
    if bool(empty.any()):
        raise ValueError(f"{name} is -inf in every entry of {int(empty.sum())} rows; each row needs a finite entry.")


def masked_log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """log softmax over the entries [..., K] where `mask` is True, -inf elsewhere.

    A row with no True entry comes back as log(1/K) everywhere, so that it stays finite and drops out of any
    sum in which it is masked.

    Example:
        >>> masked_log_softmax(torch.zeros(3), torch.tensor([True, True, False])).exp()
        tensor([0.5000, 0.5000, 0.0000])
    """
    rows = mask.any(dim=-1, keepdim=True)
    filled = torch.where(mask, logits, -torch.inf)
    return torch.log_softmax(torch.where(rows, filled, 0.0), dim=-1)


def candidate_mask(top_log_probs: Tensor, min_prob: float) -> Tensor:
    """Which of a row's most likely tokens [..., K] are candidates: the first, and those of `min_prob` or more."""
    mask = (top_log_probs.exp() >= min_prob) & (top_log_probs > -torch.inf)
    mask[..., 0] = True
    return mask


def below_max(values: Tensor, mask: Tensor) -> Tensor:
    """`values` minus the row's largest one under the mask, [..., K]; 0 at masked entries.

    As a change of logits it is the same as `values`, and keeps the digits that a common offset would take.
    """
    largest = torch.where(mask, values, -torch.inf).amax(dim=-1, keepdim=True)
    return torch.where(mask, values - largest, 0.0)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest dtype of `tensors`, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
