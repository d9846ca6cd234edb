"""Losses of a displacement where it is known: at landmarks, or everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deqreg.spatial import sample

# Keeps the gradient of a length finite where it vanishes: a thousandth of a voxel, squared.
_TINY = 1e-6


def landmarks(
    displacement: Tensor, fixed_points: Tensor, moving_points: Tensor, spacing: Sequence[float] | None = None
) -> Tensor:
    """The mean distance of corresponding points after registration: `mean_p |p + u(p) - q|`.

    The displacement is interpolated linearly and constant beyond its grid.

    Args:
        displacement: `u`, `[N, d, *S]`, in voxels.
        fixed_points: `p`, `[N, P, d]`, in voxels.
        moving_points: `q`, as fixed_points.
        spacing: the voxels' edges along each axis, which the distance is then in; 1 by default.

    Returns:
        `[N]`, to within a thousandth of a voxel.

    Raises:
        ValueError: when shapes disagree, or there is no point.

    >>> points = torch.tensor([[[1.0, 1.0], [2.5, 1.0]]])
    >>> round(landmarks(torch.ones(1, 2, 4, 4), points, points + 1).item(), 3)
    0.001
    """
    expected = [displacement.shape[0], "P", displacement.shape[1]]
    if fixed_points.ndim != 3 or [fixed_points.shape[0], "P", fixed_points.shape[2]] != expected:
        raise ValueError(f"fixed_points must be {expected}, got {list(fixed_points.shape)}")
    if fixed_points.shape != moving_points.shape or fixed_points.shape[1] == 0:
        raise ValueError(
            f"fixed and moving points must be as many, at least 1, got {list(fixed_points.shape)} "
            f"and {list(moving_points.shape)}"
        )
    off = fixed_points + sample(displacement, fixed_points) - moving_points
    if spacing is not None:
        off = off * torch.tensor(list(spacing)).to(off)
    return (off.square().sum(2) + _TINY).sqrt().mean(1)


def endpoint_error(displacement: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean distance to a known field: `mean_x |u(x) - u_true(x)|`.

    Args:
        displacement: `u`, `[N, d, *S]`, in voxels.
        truth: as displacement.
        mask: `[N, 1, *S]`, nonzero where voxels count; all by default.

    Returns:
        `[N]`, in voxels, to within a thousandth; 0 where a sample's mask is empty.

    Raises:
        ValueError: when the shapes disagree.

    >>> truth = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    >>> round(endpoint_error(torch.zeros(1, 2, 4, 4), truth).item(), 3)
    5.0
    """
    if displacement.shape != truth.shape:
        raise ValueError(
            f"displacement and truth must have one shape, got {list(displacement.shape)} and {list(truth.shape)}"
        )
    length = ((displacement - truth).square().sum(1, keepdim=True) + _TINY).sqrt()
    if mask is None:
        return length.flatten(1).mean(1)
    if mask.shape != length.shape:
        raise ValueError(f"mask must be {list(length.shape)}, got {list(mask.shape)}")
    inside = (mask != 0).to(length.dtype)
    return (length * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
