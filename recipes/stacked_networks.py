# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Small networks for the continuous-action demonstrations: S independent MLPs in one call, and flow matching with them.

A stack holds one network per seed, or the two critics of a double critic; one batched product serves all of them.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class StackedMLP(nn.Module):
    """S independent multi-layer perceptrons of one shape.

    Args:
        num: S, how many networks.
        sizes: Widths from the input to the output.
        generator: Source of the initial weights.
        layer_norm: Whether hidden layers are normalised (without weights) before the activation.

    Example:
        >>> StackedMLP(3, (2, 8, 1), torch.Generator().manual_seed(0))(torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5, 1])
    """

    def __init__(self, num: int, sizes: Sequence[int], generator: torch.Generator, layer_norm: bool = False) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        if num < 1 or len(sizes) < 2:
            raise ValueError(f"a stack needs num >= 1 and at least two sizes, got num={num}, sizes={tuple(sizes)}.")
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = (3 / fan_in) ** 0.5
            uniform = torch.rand(num, fan_in, fan_out, generator=generator) * 2 - 1
            self.weights.append(nn.Parameter(uniform * bound))
            self.biases.append(nn.Parameter(torch.zeros(num, 1, fan_out)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps [S, B, in] to [S, B, out]; network s sees row s alone."""
        hidden = inputs
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if index < len(self.weights) - 1:
                if self.layer_norm:
                    hidden = nn.functional.layer_norm(hidden, hidden.shape[-1:])
                hidden = nn.functional.silu(hidden)
        return hidden

    def repeat(self, times: int) -> "StackedMLP":
        """Returns a stack of S * `times` networks, the whole of this one after itself, with weights of its own."""
        copy = StackedMLP(1, (1, 1), torch.Generator(), self.layer_norm)
        copy.weights = nn.ParameterList(nn.Parameter(w.detach().repeat(times, 1, 1)) for w in self.weights)
        copy.biases = nn.ParameterList(nn.Parameter(b.detach().repeat(times, 1, 1)) for b in self.biases)
        return copy


class FlowMatching(nn.Module):
    """A generator of actions given a condition: velocities learned by flow matching, sampled by Euler steps.

    Args:
        num: S, how many independent generators.
        action_size: D.
        condition_size: Width of the condition; 0 for none.
        width: Width of the two hidden layers.
        generator: Source of the initial weights.

    Source:
        Conditional flow matching along straight lines, arXiv 2210.02747; the behaviour model of arXiv 2604.14265.
    """

    def __init__(self, num: int, action_size: int, condition_size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = (condition_size + action_size + 1, width, width, action_size)
        self.velocity = StackedMLP(num, sizes, generator)

    def _velocity(self, points: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        parts = [points, time] if condition is None else [condition, points, time]
        return self.velocity(torch.cat(parts, dim=-1))

    def loss(self, actions: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity of each generator on `actions` [S, B, D], as [S]."""
        noise = torch.randn(actions.shape, generator=generator)
        time = torch.rand(*actions.shape[:-1], 1, generator=generator)
        points = (1 - time) * noise + time * actions
        error = self._velocity(points, time, condition) - (actions - noise)
        return error.square().mean(dim=(1, 2))

    def sample(self, noise: Tensor, condition: Tensor | None = None, num_steps: int = 10) -> Tensor:
        """Carries noise [S, B, D] to actions [S, B, D]; differentiable in the weights."""
        points = noise
        for step in range(num_steps):
            time = torch.full((*noise.shape[:-1], 1), step / num_steps)
            points = points + self._velocity(points, time, condition) / num_steps
        return points
