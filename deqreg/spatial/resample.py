"""Changing the grid of an image or a field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from deqreg import ops
from deqreg.spatial.grid import Grid


def smoothing_for(factor: float) -> float:
    """Standard deviation, in voxels of the finer grid, that makes its voxel as wide as one `factor` times larger.

    Two Gaussians of full width 1 and `factor` at half maximum, subtracted in variance: 0.4247 sqrt(factor^2 - 1).
    Reference: Cardoso et al., Scale factor point spread function matching, MICCAI 2015, eq. 4.

    >>> round(smoothing_for(2.0), 3), smoothing_for(1.0)
    (0.736, 0.0)
    """
    return math.sqrt(max(factor**2 - 1, 0.0) / (8 * math.log(2)))


def resize(image: Tensor, shape: Sequence[int]) -> Tensor:
    """An image on another number of voxels over the same extent, smoothed first along axes that get coarser.

    Args:
        image: `[N, C, *S]`.
        shape: the new spatial shape.

    Returns:
        `[N, C, *shape]`, linear interpolation; the image itself where the shape is already this.

    >>> import torch
    >>> resize(torch.ones(1, 1, 8, 8), (4, 4)).shape
    torch.Size([1, 1, 4, 4])
    """
    if tuple(shape) == tuple(image.shape[2:]):
        return image
    factors = [old / new for old, new in zip(image.shape[2:], shape, strict=True)]
    smooth = ops.gaussian(image, [min(smoothing_for(f), 20.0) for f in factors])
    return ops.resize(smooth, shape)


def resize_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask on another number of voxels over the same extent: inside where half of a voxel is.

    What is too thin to fill half of a coarse voxel anywhere is kept where it fills most of one.

    Args:
        mask: `[N, 1, *S]`, 1 inside and 0 outside.
        shape: the new spatial shape.

    Returns:
        `[N, 1, *shape]`, 1 inside and 0 outside.

    >>> import torch
    >>> shell = torch.zeros(1, 1, 16, 16)
    >>> shell[..., 5] = 1
    >>> resize_mask(shell, (4, 4)).sum().item()
    4.0
    """
    share = resize(mask, shape)
    return (share > min(0.5, 0.5 * float(share.max()))).to(mask)


def resize_displacement(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """A displacement on another number of voxels over the same extent, in the new voxels.

    Args:
        displacement: `[N, d, *S]`, in voxels.
        shape: the new spatial shape.

    Returns:
        `[N, d, *shape]`, in the new voxels.

    >>> import torch
    >>> resize_displacement(torch.ones(1, 2, 4, 4), (8, 8)).unique().tolist()
    [2.0]
    """
    old = displacement.shape[2:]
    if tuple(shape) == tuple(old):
        return displacement
    resized = ops.resize(displacement, shape)
    scale = torch.tensor([new / was for new, was in zip(shape, old, strict=True)], dtype=resized.dtype)
    return resized.mul_(scale.to(resized.device).view(1, -1, *[1] * len(old)))


def resample(
    image: Tensor, grid: Grid, onto: Grid, world: Tensor | None = None, *, interpolation: str = "linear",
    padding: str = "border", antialias: bool = True,
) -> Tensor:  # fmt: skip
    """An image on another grid of the world.

    `out(x) = image(W(x))`, `x` and `W(x)` points of the world, smoothed first along axes that get coarser.

    Args:
        image: `[1, C, *S]` on `grid`.
        grid: where the image's voxels lie.
        onto: where the result's voxels lie.
        world: `W`, `[d + 1, d + 1]`, RAS millimetres; the identity if not given.
        interpolation: as in `deqreg.ops.warp`.
        padding: as in `deqreg.ops.warp`.
        antialias: smooth before a linear interpolation onto a coarser grid.

    Returns:
        `[1, C, *onto.shape]`; the image itself where the voxels of both grids are the same.

    >>> import torch
    >>> grid = Grid((4, 4), torch.eye(3, dtype=torch.float64))
    >>> resample(torch.ones(1, 1, 4, 4), grid, grid.resized((2, 2))).shape
    torch.Size([1, 1, 2, 2])
    """
    mapping = onto.map_to(grid, world)
    if onto.shape == grid.shape and torch.equal(mapping, torch.eye(grid.dims, grid.dims + 1, dtype=mapping.dtype)):
        return image
    if antialias and interpolation == "linear":
        # how many voxels of the image a step of the new grid spans, along each axis of the image
        steps = mapping[:, : grid.dims].abs().amax(dim=1)
        image = ops.gaussian(image, [min(smoothing_for(float(s)), 20.0) for s in steps])
    still = image.new_zeros(image.shape[0], grid.dims, *onto.shape)
    affine = mapping.to(image).expand(image.shape[0], -1, -1)
    return ops.warp(image, still, affine=affine, interpolation=interpolation, padding=padding)


def resample_displacement(
    displacement: Tensor, grid: Grid, onto: Grid, world: Tensor | None = None, *, antialias: bool = False
) -> Tensor:
    """A displacement of one grid as one in voxels of another, through a map; beyond its faces as it is there.

    Args:
        displacement: `[1, d, *S]` on `grid`, in its voxels.
        grid: where its voxels lie.
        onto: where the result's voxels lie.
        world: `W`, `[d + 1, d + 1]`, from points of `onto` to points of `grid`; the identity if not given.
        antialias: smooth before going to a coarser grid.

    Returns:
        `[1, d, *onto.shape]`, in voxels of `onto`.

    >>> grid = Grid((4, 4), torch.eye(3, dtype=torch.float64))
    >>> resample_displacement(torch.ones(1, 2, 4, 4), grid, grid.resized((2, 2))).unique().tolist()
    [0.5]
    """
    moved = resample(displacement, grid, onto, world, antialias=antialias)
    linear = torch.linalg.inv(onto.map_to(grid, world)[:, : onto.dims]).to(displacement)
    return torch.einsum("ab,nb...->na...", linear, moved).contiguous()


def pull(
    image: Tensor, displacement: Tensor, affine: Tensor, interpolation: str = "linear", inside: Tensor | None = None
) -> Tensor:
    """An image under a total map, interpolated once, zero where a point falls outside of its voxels, as ITK has it.

    Args:
        image: `[N, C, *S_image]`.
        displacement: `u`, `[N, d, *S_out]`, in output voxels.
        affine: `[N, d, d + 1]`, output voxels to image voxels, applied to `x + u(x)`.
        interpolation: as in `deqreg.ops.warp`.
        inside: what `reached` gives for these, where it is at hand.

    Returns:
        `[N, C, *S_out]`.

    >>> import torch
    >>> pull(torch.ones(1, 1, 4, 4), torch.full((1, 2, 4, 4), 2.0), torch.eye(2, 3)[None])[0, 0, 0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    warped = ops.warp(image, displacement, affine=affine, interpolation=interpolation)
    return warped.mul_(reached(image.shape[2:], displacement, affine) if inside is None else inside)


def reached(shape: Sequence[int], displacement: Tensor, affine: Tensor) -> Tensor:
    """Where a total map leads to voxels of an image.

    Args:
        shape: of the image.
        displacement: as in `pull`.
        affine: as in `pull`.

    Returns:
        `[N, 1, *S_out]`, 1 there and 0 elsewhere.

    >>> import torch
    >>> reached((4, 4), torch.full((1, 2, 4, 4), 2.0), torch.eye(2, 3)[None])[0, 0, 0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    ones = displacement.new_ones(len(displacement), 1, *shape)
    # the box of the voxels reaches half a voxel past their centres: nearest with zeros is exactly that test
    return ops.warp(ones, displacement, affine=affine, interpolation="nearest", padding="zeros")


def sample(field: Tensor, points: Tensor) -> Tensor:
    """A field at any points: interpolated linearly, held constant beyond its grid.

    Args:
        field: `[N, C, *S]`, such as a displacement.
        points: `[N, P, d]`, in voxels of its grid.

    Returns:
        `[N, P, C]`. Differentiable by the field and the points.

    >>> import torch
    >>> ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 2, 4, 4)
    >>> sample(ramp, torch.tensor([[[0.0, 1.5]]])).tolist()
    [[[1.5, 1.5]]]
    """
    where, _ = as_grid(points.to(field))
    return ops.warp(field, where).flatten(2).mT[:, : points.shape[1]]


def scatter(values: Tensor, points: Tensor, shape: Sequence[int]) -> Tensor:
    """Vectors at any points added into a field: the adjoint of `sample`.

    Args:
        values: `[N, P, d]`.
        points: `[N, P, d]`, in voxels of the field's grid.
        shape: the field's spatial shape.

    Returns:
        `[N, d, *shape]`.

    >>> import torch
    >>> scatter(torch.ones(1, 1, 2), torch.tensor([[[0.0, 1.5]]]), (2, 4))[0, 0].tolist()
    [[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    where, voxels = as_grid(points.to(values))
    padded = functional.pad(values.mT, (0, len(voxels) - points.shape[1]))
    return ops.splat(padded.reshape(where.shape).contiguous(), where, shape)


def as_grid(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points as the places that the voxels of a small grid go to.

    The grid is about a cube: a voxel's index, which is taken off here and added again where the displacement is used,
    stays small, and float32 loses nothing by it.

    Args:
        points: `[N, P, d]`.

    Returns:
        The displacement `[N, d, *K]`, the last point again and again where the grid has more voxels; and the grid's
        voxels, `[prod K, d]`.

    >>> import torch
    >>> displacement, voxels = as_grid(torch.full((1, 5, 2), 7.0))
    >>> list(displacement.shape), voxels[5].tolist(), displacement[0, :, 2, 1].tolist()
    ([1, 2, 3, 2], [2.0, 1.0], [5.0, 6.0])
    """
    batch, count, dims = points.shape
    edge = max(1, math.ceil(count ** (1 / dims)))
    shape = [edge] * (dims - 1)
    shape.append(-(-count // math.prod(shape)))
    voxels = torch.cartesian_prod(*(torch.arange(size) for size in shape)).to(points)
    more = points[:, -1:].expand(-1, len(voxels) - count, -1) if count else points
    where = (torch.cat([points, more], dim=1) - voxels).mT
    return where.reshape(batch, dims, *shape).contiguous(), voxels
