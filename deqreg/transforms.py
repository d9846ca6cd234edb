"""Transforms between worlds: their affine part, their inverse, and the points they move."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from deqreg import io
from deqreg.io import DisplacementField
from deqreg.spatial import Grid, invert_points, sample
from deqreg.spatial import invert as invert_voxels

Transform = DisplacementField | np.ndarray

# as many points of a field as these fix its affine part to far less than its own noise
_MOST_POINTS = 100_000


def split(displacement: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """A field as the affine map nearest to it, and what is left: `p + d(p) = W(p + u(p))`.

    Args:
        displacement: `[d, *S]`, RAS millimetres.
        grid: where its voxels lie.

    Returns:
        `W`, `[d + 1, d + 1]` float64, RAS millimetres, in the sense of least squares over the grid; and `u`,
        `[1, d, *S]`, in voxels of the grid.

    >>> import torch
    >>> grid = Grid((8, 8, 8), torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64)))
    >>> world, rest = split(torch.ones(3, 8, 8, 8), grid)
    >>> world[:3, 3].round(decimals=9).tolist(), bool(rest.abs().max() < 1e-5)
    ([1.0, 1.0, 1.0], True)
    """
    dims = grid.dims
    step = int(np.ceil((np.prod(grid.shape) / _MOST_POINTS) ** (1 / dims)))
    along = [torch.linspace(0, n - 1, max(2, -(-n // step)), dtype=torch.float64).round().long() for n in grid.shape]
    voxels = torch.cartesian_prod(*along)
    points = grid.to_world(voxels)
    moved = points + displacement[:, *voxels.unbind(1)].double().T
    centred = torch.cat([points - grid.centre, torch.ones(len(points), 1).double()], 1)  # scanners lie metres off
    fit = torch.linalg.solve(centred.T @ centred, centred.T @ moved).T
    world = torch.eye(dims + 1, dtype=torch.float64)
    world[:dims, :dims] = fit[:, :dims]
    world[:dims, dims] = fit[:, dims] - fit[:, :dims] @ grid.centre
    rest = io.voxel_map(displacement, grid.affine.numpy(), (world @ grid.affine).numpy())
    return world, _shifted(rest, -1)[None]


def join(rest: Tensor, grid: Grid, world: Tensor) -> Tensor:
    """The total displacement of an affine map after a field: `d(p) = W(p + u(p)) - p`.

    Args:
        rest: `u`, `[1, d, *S]`, in voxels of the grid.
        grid: where its voxels lie.
        world: `W`, `[d + 1, d + 1]` float64, RAS millimetres.

    Returns:
        `[d, *S]`, RAS millimetres.

    >>> import torch
    >>> grid = Grid((4, 4), torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)))
    >>> join(torch.ones(1, 2, 4, 4), grid, torch.eye(3, dtype=torch.float64)).unique().tolist()
    [2.0]
    """
    return io.world_displacement(_shifted(rest[0].cpu(), 1), grid.affine.numpy(), (world @ grid.affine).numpy())


def invert(field: DisplacementField, onto: Grid) -> Tensor:
    """The inverse of a transform, on any grid of the world it leads to: `q + i(q) = p` where `p + d(p) = q`.

    The affine part is inverted as such, and carries the inverse beyond the points that the field reaches.

    Args:
        field: the transform.
        onto: the inverse's grid, such as the moving image's.

    Returns:
        `i`, `[d, *onto.shape]`, RAS millimetres.

    Raises:
        ValueError: when field and grid are of different dimensions, or the affine part has no inverse.

    Warns:
        UserWarning: when it was not found everywhere, as where the transform folds.

    >>> import torch
    >>> shift = DisplacementField(torch.ones(3, 8, 8, 8), np.eye(4))
    >>> invert(shift, Grid((4, 5, 6), torch.eye(4, dtype=torch.float64))).mean(dim=(1, 2, 3)).round(decimals=5).tolist()
    [-1.0, -1.0, -1.0]
    """
    grid = grid_of(field)
    if grid.dims != onto.dims:
        raise ValueError(f"the grid of the inverse must be {grid.dims}-D as the transform, got {onto.dims}-D")
    world, rest = split(field.displacement, grid)
    back = _inverse_matrix(world)
    solution = invert_voxels(rest, onto.shape, onto.map_to(grid, back))
    assert isinstance(solution.value, Tensor)
    if not solution.converged:
        left = float(solution.residuals[-1].max())
        warnings.warn(
            f"The inverse was found to {left:.1g} voxels (rms) alone: where a transform folds it has none.",
            stacklevel=2,
        )
    return join(solution.value, onto, back)


def move_points(transform: Transform, points: Tensor, *, inverse: bool = False) -> Tensor:
    """Points of the fixed image in the moving one, `p + d(p)`, or back.

    Args:
        transform: a displacement field, held constant beyond its grid, or an affine map.
        points: `[P, d]`, RAS millimetres.
        inverse: find where points of the moving image come from instead.

    Returns:
        `[P, d]` float64, RAS millimetres.

    Raises:
        ValueError: when the points are not of the transform's dimension, or the transform has no inverse.

    >>> import torch
    >>> shift = DisplacementField(torch.ones(3, 8, 8, 8), np.eye(4))
    >>> there = move_points(shift, torch.tensor([[2.0, 3.0, 4.0]]))
    >>> there.tolist(), move_points(shift, there, inverse=True).round(decimals=6).tolist()
    ([[3.0, 4.0, 5.0]], [[2.0, 3.0, 4.0]])
    """
    dims = len(transform) - 1 if isinstance(transform, np.ndarray) else len(transform.displacement)
    if points.ndim != 2 or points.shape[1] != dims:
        raise ValueError(f"points must be [P, {dims}] for this transform, got {list(points.shape)}")
    points = points.double()
    if isinstance(transform, np.ndarray):
        matrix = torch.from_numpy(transform).double()
        return _apply(_inverse_matrix(matrix) if inverse else matrix, points)
    grid = grid_of(transform)
    if not inverse:
        return points + sample(transform.displacement[None].double(), grid.to_voxels(points)[None])[0]
    world, rest = split(transform.displacement, grid)
    reached = grid.to_voxels(_apply(_inverse_matrix(world), points))
    return grid.to_world(invert_points(rest.double(), reached[None])[0])


def grid_of(field: DisplacementField) -> Grid:
    """Where the voxels of a field lie.

    Args:
        field: the displacement and its affine.

    Returns:
        The grid, in the field's own dimensions.

    >>> import torch
    >>> grid_of(DisplacementField(torch.zeros(2, 4, 5), np.eye(4))).shape
    (4, 5)
    """
    shape = tuple(field.displacement.shape[1:])
    return Grid.of(shape, io.grid_matrix(field.affine, len(shape)))


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    dims = points.shape[1]
    return points @ matrix[:dims, :dims].T + matrix[:dims, dims]


def _inverse_matrix(world: Tensor) -> Tensor:
    if abs(float(torch.linalg.det(world))) < 1e-9:
        raise ValueError("the affine part of a transform must be invertible, got determinant 0")
    return torch.linalg.inv(world)


def _shifted(field: Tensor, sign: int) -> Tensor:
    """`[d, *S]` with `sign` times its own voxel index added."""
    found = field.clone()
    for axis, size in enumerate(field.shape[1:]):
        index = torch.arange(size, dtype=field.dtype, device=field.device)
        found[axis] += sign * index.view(-1, *[1] * (field.ndim - 2 - axis))
    return found
