"""Losses of the displacement alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deqreg import ops


def diffusion(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """How unevenly the field moves: `sum_ab mean_x (h_a / h_b du_a/dx_b)^2`, by forward differences.

    Without a unit: the derivative of the displacement in millimetres by millimetres, so that it means the same at any
    voxel size.

    Args:
        displacement: `u`, `[N, d, *S]`, in voxels.
        spacing: `h`, the voxels' edges along each axis, any unit; all alike by default.

    Returns:
        `[N]`. An axis of one voxel adds nothing.

    Raises:
        ValueError: when the displacement is no field, or the spacing does not fit it.

    Reference: Fischer & Modersitzki, Fast diffusion registration, Contemporary Mathematics 313 (2002), eq. 2.

    >>> x = torch.arange(4.0).expand(1, 4, 4)
    >>> diffusion(torch.stack([0.5 * x.mT, x], dim=1)).item()
    1.25
    """
    dims = _dimensions(displacement)
    edges = [1.0] * dims if spacing is None else [float(edge) for edge in spacing]
    if len(edges) != dims or min(edges) <= 0:
        raise ValueError(f"spacing must be {dims} positive numbers, got {spacing}")
    scale = torch.tensor(edges).to(displacement).view(1, -1, *[1] * dims)
    total = displacement.new_zeros(displacement.shape[0])
    for axis, edge in enumerate(edges):
        if displacement.shape[axis + 2] > 1:
            slope = displacement.diff(dim=axis + 2) * (scale / edge)
            total = total + slope.square().flatten(2).mean(2).sum(1)
    return total


def folding(displacement: Tensor, margin: float = 0.0) -> Tensor:
    """How far the field folds: `mean_x max(0, margin - det(I + du/dx))`.

    Args:
        displacement: `u`, `[N, d, *S]`, in voxels.
        margin: determinant below which a voxel counts; a little above 0 keeps a distance from folds.

    Returns:
        `[N]`; 0 where no determinant is below the margin.

    Raises:
        ValueError: when the displacement is no field.

    Reference: Mok & Chung, Fast symmetric diffeomorphic image registration, CVPR 2020, eq. 6.

    >>> mirror = torch.zeros(1, 2, 6, 6)
    >>> mirror[:, 0] = -2 * torch.arange(6.0)[:, None]
    >>> folding(mirror).item()
    1.0
    """
    return torch.relu(margin - ops.jacobian_determinant(displacement)).flatten(1).mean(1)


def _dimensions(displacement: Tensor) -> int:
    dims = displacement.ndim - 2
    if dims not in (2, 3) or displacement.shape[1] != dims:
        raise ValueError(f"displacement must be [N, 2, H, W] or [N, 3, D, H, W], got {list(displacement.shape)}")
    return dims
