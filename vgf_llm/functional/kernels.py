# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The RBF kernel between particles, its gradient and its bandwidth."""

import torch
from torch import Tensor

from ._checks import check_finite, check_particle_shape, check_particles, checks_values
from ._masking import working_dtype

# Groups of more numbers than this are worth a call each on a CPU: `pdist` takes a seventh of the time of `cdist`.
_SMALL_GROUP = 2**12
# Numbers that are worked on at a time: what fits into a core's own cache, or fills a GPU.
_TILES = {"cpu": 2**17}
_TILE = 2**24


def tile_size(tensor: Tensor) -> int:
    """How many numbers of `tensor` to work on at a time, so that intermediate results stay in a cache."""
    return _TILES.get(tensor.device.type, _TILE)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Pairwise Euclidean distances [..., N, M]."""
    dtype = working_dtype(x, y)
    # The matrix-product form of cdist loses close particles to cancellation; this form never does, and like it
    # allocates no [N, M, D].
    return torch.cdist(x.to(dtype), y.to(dtype), compute_mode="donot_use_mm_for_euclid_dist")


@torch.no_grad()
def pair_distances(particles: Tensor) -> Tensor:
    """Euclidean distances between the different particles of each group, in one pass over them; at least float32.

    They are [..., N (N - 1) / 2], in the order of `torch.triu_indices(N, N, offset=1)`.
    """
    num_particles, width = particles.shape[-2:]
    if num_particles == 1:
        check_finite("particles", particles)
        return particles.new_empty((*particles.shape[:-2], 0), dtype=working_dtype(particles))
    columns = max(1, tile_size(particles) // num_particles)
    small = particles.device.type != "cpu" or num_particles * width <= _SMALL_GROUP
    if width <= columns and small:
        rows, others = torch.triu_indices(num_particles, num_particles, offset=1, device=particles.device)
        pairs = _distances(particles, particles)[..., rows, others]
    else:
        groups = particles.reshape(-1, num_particles, width)
        squares = groups.new_zeros(
            groups.shape[0], num_particles * (num_particles - 1) // 2, dtype=working_dtype(particles)
        )
        for group, square in zip(groups, squares, strict=True):
            for tile in group.split(columns, dim=-1):
                square += torch.pdist(tile.to(square.dtype).contiguous()).square()
        pairs = squares.sqrt().view(*particles.shape[:-2], -1)
    if checks_values() and not bool(torch.isfinite(pairs).all()):
        # Every particle is in a pair, so that finite distances prove finite particles and spare a pass to look.
        check_finite("particles", particles)
    return pairs


def _median(pairs: Tensor) -> Tensor:
    """The median [...] of positive numbers [..., P]; 1 where it is zero, or of no number."""
    if pairs.shape[-1] == 0:
        return pairs.new_ones(pairs.shape[:-1])
    pairs = pairs.sort(dim=-1).values
    median = (pairs[..., pairs.shape[-1] // 2] + pairs[..., (pairs.shape[-1] - 1) // 2]) / 2
    return torch.where(median > 0, median, 1.0)


def particle_kernel(particles: Tensor, bandwidth: float | Tensor | None) -> tuple[Tensor, Tensor]:
    """The kernel [..., N, N] among the particles of each group and its bandwidth, without gradients."""
    check_particle_shape("particles", particles)
    num_particles, pairs = particles.shape[-2], pair_distances(particles)
    if bandwidth is None:  # in the particles' precision, as `median_bandwidth` returns it
        bandwidth = _median(pairs).to(particles.dtype)
    column = _bandwidth_column(bandwidth, particles)
    values = torch.exp(-0.5 * (pairs / column[..., 0]).square())
    rows, columns = torch.triu_indices(num_particles, num_particles, offset=1, device=particles.device)
    kernel = torch.ones(*particles.shape[:-1], num_particles, dtype=values.dtype, device=values.device)
    kernel[..., rows, columns] = values
    kernel[..., columns, rows] = values
    return kernel, column[..., 0, 0]


def median_bandwidth(particles: Tensor) -> Tensor:
    """Median of the distances between different particles, the usual bandwidth of Stein flows.

    The zero distance of a particle to itself is not counted. No gradient flows through the result.

    Args:
        particles: Particles, [..., N, D].

    Returns:
        The bandwidth [...]; 1 where there is no positive median (N = 1, or coincident particles).

    Raises:
        TypeError: `particles` is not floating point.
        ValueError: `particles` is not [..., N, D] or not finite.

    Source:
        The median heuristic of Stein variational gradient descent (arXiv 1608.04471, section 5).

    Example:
        >>> median_bandwidth(torch.tensor([[0.0], [1.0], [4.0]]))  # distances 1, 3, 4
        tensor(3.)
    """
    check_particle_shape("particles", particles)
    return _median(pair_distances(particles)).to(particles.dtype)


def _bandwidth_column(bandwidth: float | Tensor, like: Tensor) -> Tensor:
    """`bandwidth` as a checked tensor that broadcasts against [..., N, M]."""
    column = torch.as_tensor(bandwidth, dtype=working_dtype(like), device=like.device)
    check_finite("bandwidth", column)
    if checks_values() and not bool((column > 0).all()):
        raise ValueError(f"bandwidth must be positive, got {bandwidth!r}; median_bandwidth gives a usable one.")
    return column[..., None, None]


def kernel_matrix(x: Tensor, y: Tensor, bandwidth: float | Tensor) -> Tensor:
    """The RBF kernel k(x_i, y_j) = exp(-|x_i - y_j|^2 / (2 bandwidth^2)).

    Args:
        x: Particles, [..., N, D].
        y: Particles, [..., M, D], with the leading dimensions of `x`.
        bandwidth: Length scale in the units of the particles, a number or [...].

    Returns:
        The kernel, [..., N, M]; at least float32.

    Raises:
        TypeError: The particles are not floating point.
        ValueError: Shapes do not agree, input is not finite, or the bandwidth is not positive.

    Source:
        arXiv 2604.14265, the kernel of the particle flow.

    Example:
        >>> kernel_matrix(torch.zeros(1, 2), torch.ones(1, 2), bandwidth=1.0)  # exp(-1)
        tensor([[0.3679]])
    """
    check_particles("x", x)
    check_particles("y", y)
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"x and y must agree in all dimensions but the number of particles, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    return torch.exp(-0.5 * (_distances(x, y) / _bandwidth_column(bandwidth, x)).square())


def rbf_kernel(x: Tensor, y: Tensor, bandwidth: float | Tensor) -> tuple[Tensor, Tensor]:
    """The RBF kernel and its closed-form gradient with respect to the first argument.

    grad_{x_i} k(x_i, y_j) = k(x_i, y_j) (y_j - x_i) / bandwidth^2. The gradient takes N M D numbers; `flow_direction`
    needs only sums of it and never builds it.

    Arguments, errors and source are those of `kernel_matrix`.

    Returns:
        The kernel [..., N, M] and its gradient [..., N, M, D].

    Example:
        >>> kernel, grad = rbf_kernel(torch.tensor([[0.0]]), torch.tensor([[2.0]]), bandwidth=2.0)
        >>> kernel, grad  # exp(-1/2) and exp(-1/2) * 2 / 4: x is drawn towards y
        (tensor([[0.6065]]), tensor([[[0.3033]]]))
    """
    kernel = kernel_matrix(x, y, bandwidth)
    difference = y.unsqueeze(-3) - x.unsqueeze(-2)
    inverse_square = _bandwidth_column(bandwidth, x).unsqueeze(-1) ** -2
    return kernel, kernel.unsqueeze(-1) * difference * inverse_square
