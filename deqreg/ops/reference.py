"""Every operator once more, in a few lines of plain torch: slow, and obviously right.

Arguments are those of the operator of the same name. Nothing outside the tests and benchmarks calls these.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def positions(displacement: Tensor, affine: Tensor | None = None) -> Tensor:
    """Sample positions `A (x + u) + t`, `[N, d, *S]`, in voxels."""
    axes = [torch.arange(n, dtype=displacement.dtype, device=displacement.device) for n in displacement.shape[2:]]
    moved = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement
    if affine is None:
        return moved
    dims = displacement.shape[1]
    shift = affine[:, :, dims].view(*affine.shape[:2], *[1] * dims)
    return torch.einsum("nab,nb...->na...", affine[:, :, :dims], moved) + shift


def corners(position: Tensor, shape: Sequence[int], interpolation: str, padding: str) -> list[tuple[Tensor, Tensor]]:
    """Flat voxel index `[N, *S]` and weight `[N, *S]` of every voxel that interpolation at `position` reads."""
    found = []
    near = [0, 1] if interpolation == "linear" else [0]
    first = torch.floor(position if interpolation == "linear" else position + 0.5)
    for corner in itertools.product(near, repeat=len(shape)):
        index, weight = torch.zeros_like(position[:, 0], dtype=torch.long), torch.ones_like(position[:, 0])
        for axis, size in enumerate(shape):
            voxel = first[:, axis] + corner[axis]
            if interpolation == "linear":
                weight = weight * (1 - (position[:, axis] - voxel).abs())
            if padding == "zeros":
                weight = weight * ((voxel >= 0) & (voxel < size))
            index = index * size + voxel.clamp(0, size - 1).long()
        found.append((index, weight))
    return found


def warp(
    image: Tensor,
    displacement: Tensor,
    *,
    affine: Tensor | None = None,
    interpolation: str = "linear",
    padding: str = "border",
) -> Tensor:
    """`image(A (x + u(x)) + t)`, corner by corner."""
    flat, out = image.flatten(2), 0
    for index, weight in corners(positions(displacement, affine), image.shape[2:], interpolation, padding):
        picked = flat.gather(2, index.flatten(1)[:, None].expand(-1, image.shape[1], -1))
        out = out + picked.view(*image.shape[:2], *displacement.shape[2:]) * weight[:, None]
    return torch.as_tensor(out)


def splat(
    values: Tensor,
    displacement: Tensor,
    shape: Sequence[int],
    *,
    affine: Tensor | None = None,
    interpolation: str = "linear",
    padding: str = "border",
) -> Tensor:
    """`image(y(x)) += values(x)`, corner by corner."""
    size = torch.Size(shape).numel()
    image = values.new_zeros(*values.shape[:2], size)
    for index, weight in corners(positions(displacement, affine), shape, interpolation, padding):
        target = index.flatten(1)[:, None].expand(-1, values.shape[1], -1)
        image = image.scatter_add(2, target, (values * weight[:, None]).flatten(2))
    return image.view(*values.shape[:2], *shape)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """`det(I + du/dx)` by `torch.gradient`."""
    columns = []
    for axis, size in enumerate(displacement.shape[2:]):
        columns.append(torch.gradient(displacement, dim=axis + 2)[0] if size > 1 else 0 * displacement)
    jacobian = torch.stack(columns, dim=-1).movedim(1, -2)
    return torch.linalg.det(jacobian + torch.eye(len(columns), dtype=jacobian.dtype, device=jacobian.device))
