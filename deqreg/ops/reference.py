"""Every operator once more, in a few lines of plain torch: slow, and obviously right.

Arguments are those of the operator of the same name. Nothing outside the tests and benchmarks calls these.
"""

from __future__ import annotations

import itertools
import math
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


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """`b(x) + a(x + b(x))`."""
    return inner + warp(outer, inner)


def exponential(velocity: Tensor, steps: int = 7) -> Tensor:
    """Scaling and squaring."""
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def gaussian(image: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """A dense matrix an axis: row `x` holds the taps around `x`, mirrored at the faces."""
    dims = image.ndim - 2
    for axis, s in enumerate([sigma] * dims if isinstance(sigma, (int, float)) else sigma):
        size, radius = image.shape[axis + 2], math.ceil(3 * s)
        taps = [math.exp(-0.5 * (k / s) ** 2) if s else 1.0 for k in range(-radius, radius + 1)]
        matrix = image.new_zeros(size, size)
        for x, k in itertools.product(range(size), range(-radius, radius + 1)):
            mirrored = (x + k) % (2 * size)
            matrix[x, min(mirrored, 2 * size - 1 - mirrored)] += taps[k + radius] / sum(taps)
        image = torch.movedim(torch.movedim(image, axis + 2, -1) @ matrix.T, -1, axis + 2)
    return image


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """`det(I + du/dx)` by `torch.gradient`."""
    columns = []
    for axis, size in enumerate(displacement.shape[2:]):
        columns.append(torch.gradient(displacement, dim=axis + 2)[0] if size > 1 else 0 * displacement)
    jacobian = torch.stack(columns, dim=-1).movedim(1, -2)
    return torch.linalg.det(jacobian + torch.eye(len(columns), dtype=jacobian.dtype, device=jacobian.device))


def lncc(
    fixed: Tensor,
    warped: Tensor,
    *,
    window: int = 9,
    mask: Tensor | None = None,
    epsilon: float = 1e-6,
    shared: float = 0.0,
) -> Tensor:
    """Moments by box sums, centred by the sample's mean so that float32 does not cancel."""
    inside = torch.ones_like(fixed) if mask is None else (mask != 0).to(fixed.dtype)
    kernel = fixed.new_ones(1, 1, *[window] * (fixed.ndim - 2))
    convolve = torch.nn.functional.conv3d if fixed.ndim == 5 else torch.nn.functional.conv2d
    voxels = inside.flatten(1).sum(1).clamp(min=1).view(-1, *[1] * (fixed.ndim - 1))

    def centre(image: Tensor) -> Tensor:
        image = image.where(inside > 0, 0)
        shift = (image.detach().double() * inside).flatten(1).sum(1).view_as(voxels) / voxels
        return (image - shift.to(image.dtype)) * inside

    def mean(values: Tensor) -> Tensor:
        return convolve(values, kernel, padding=window // 2) / count

    count = convolve(inside, kernel, padding=window // 2).clamp(min=1)
    i, j = centre(fixed), centre(warped)
    covariance = mean(i * j) - mean(i) * mean(j) + shared
    variances = [(mean(a * a) - mean(a).square()).clamp(min=0) + epsilon for a in (i, j)]
    return (inside * covariance.square() / (variances[0] * variances[1]) / voxels).flatten(1).sum(1)
