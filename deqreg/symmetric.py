"""Half-way between the images, inside of `register`: both move until they meet, and either's way to the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqreg import ops
from deqreg.learned import Features
from deqreg.levels import compares_structure, level_shapes, solve_level
from deqreg.nets import SymmetricUpdate
from deqreg.presets import Preset
from deqreg.registration import LevelReport, Progress
from deqreg.spatial import (
    Grid,
    Image,
    invert,
    resample,
    resample_displacement,
    resize_displacement,
    self_similarity,
)

# Denman and Beavers' iteration squares its error: a matrix that has a root has it to rounding long before.
_ROOT_STEPS = 30
# Of the inverse of either half, in voxels: a tenth of what the field's own equilibrium leaves.
_TOL = 1e-3


@dataclass(frozen=True, eq=False)
class Meeting:
    """Two images half-way between each other: a point `x` is `H^-1(x + a(x))` in fixed and `H(x + b(x))` in moving.

    Attributes:
        to_fixed: `a`, `[1, d, *grid.shape]`, in voxels of the grid.
        to_moving: `b`, as to_fixed.
        grid: half-way, with the voxels of the last level's images.
        half: `H`, from points half-way to moving points and from fixed points half-way; `H H` is the affine map `W`.
        back: `H^-1`.
        levels: how each level went.
    """

    to_fixed: Tensor
    to_moving: Tensor
    grid: Grid
    half: Tensor
    back: Tensor
    levels: list[LevelReport]

    def displacement(self, fixed: Grid) -> Tensor:
        """`u`, `p -> W(p + u(p))`, at the voxels of a grid over the fixed image and in those, `[1, d, *fixed.shape]`.

        `W(p + u(p)) = H(y + c(y))`, `y = H p`, `c = compose(b, a^-1)`.
        """
        return resample_displacement(_after(self.to_moving, self.to_fixed), self.grid, fixed, self.half)

    def inverse(self, moving: Grid) -> Tensor:
        """`v`, `q -> W^-1(q + v(q))`, at the voxels of a grid over the moving image, with `compose(a, b^-1)`."""
        return resample_displacement(_after(self.to_fixed, self.to_moving), self.grid, moving, self.back)


def meet(
    images: tuple[Image, Image], world: Tensor, start: tuple[Tensor, Grid], features: Features | None, preset: Preset,
    count: int, border: float, rounding: float, progress: Callable[[Progress], None] | None = None,
) -> Meeting:  # fmt: skip
    """Both images' displacements of a grid half-way, at their equilibrium on each level.

    Args:
        images: fixed and moving, scaled to [0, 1], each on its grid.
        world: `W`, the affine map from fixed to moving points, `[d + 1, d + 1]`.
        start: `u`, `[1, d, *S]`, in voxels of the grid beside it, which covers fixed: of which either image goes half.
        features: learned ones of both images, which pull beside the similarity, or None.
        preset: levels, method and solver.
        count: of the preset's levels, how many are solved half-way, the coarsest first.
        border: millimetres by which the grid half-way reaches past what there is to align.
        rounding: standard deviation of the Gaussian that takes off interpolation's kinks, in voxels.
        progress: called along the way.

    Raises:
        ValueError: when the affine map has no square root.
    """
    half, back = square_root(world)
    grid = at = half_way_grid(images, (half, back), border)
    dims, method = grid.dims, preset.method
    if preset.smooth_halves is not None:
        method = replace(method, smooth_field=preset.smooth_halves)
    state = _halves(*start, grid.resized(level_shapes(grid, preset.levels[0], preset)[1]), back)
    reports = []
    for number, level in enumerate(preset.levels[:count], 1):
        shape, field = level_shapes(grid, level, preset)
        at = grid.resized(shape)
        seen = [image.at(min(grid.spacing) * level.factor) for image in images]
        beside = None
        if features is not None:
            beside = features.on(at.resized(field), back)
        elif compares_structure(level, preset):
            met = [resample(image.data, image.grid, at, way) for image, way in zip(seen, (back, half), strict=True)]
            beside = self_similarity(met[0], field), self_similarity(met[1], field)
        update = SymmetricUpdate(
            seen[0].data,
            seen[1].data,
            method,
            shape=shape,
            field=field,
            spacing=at.spacing,
            affines=(at.map_to(seen[0].grid, back), at.map_to(seen[1].grid, half)),
            features=beside,
        )
        state = torch.cat([resize_displacement(u, field) for u in state.split(dims, dim=1)], dim=1)
        label = f"level {number}/{len(preset.levels)}"
        state, report = solve_level(update, state, level, preset, at, label, progress)
        reports.append(report)
    # to be inverted and composed at the images' resolution: at the field's own, Dice between heads is 0.006 lower
    to_fixed, to_moving = (_fine(u, at.shape, rounding) for u in state.split(dims, dim=1))
    return Meeting(to_fixed, to_moving, at, half, back, reports)


def square_root(world: Tensor) -> tuple[Tensor, Tensor]:
    """The map that leads half of the way, and its inverse: `H H = W`.

    Args:
        world: `W`, `[d + 1, d + 1]` float64.

    Returns:
        `H` and `H^-1`.

    Raises:
        ValueError: for a map that mirrors or turns by half a circle, which has none.

    Reference: Denman & Beavers, The matrix sign function and computations in systems, Appl. Math. Comput. 2 (1976), 63.

    >>> import torch
    >>> half, back = square_root(torch.diag(torch.tensor([4.0, 9.0, 1.0], dtype=torch.float64)))
    >>> half.diagonal().tolist(), back.diagonal().mul(6).tolist()
    ([2.0, 3.0, 1.0], [3.0, 2.0, 6.0])
    """
    half, back = world.clone(), torch.eye(len(world), dtype=world.dtype)
    with suppress(RuntimeError):  # the matrices of a map without a root become singular on the way
        for _ in range(_ROOT_STEPS):
            half, back = (half + torch.linalg.inv(back)) / 2, (back + torch.linalg.inv(half)) / 2
    if not torch.allclose(half @ half, world, rtol=1e-9, atol=1e-6):
        raise ValueError(
            "a symmetric registration needs an affine start that neither mirrors nor turns by half a circle, got "
            f"{world[:-1].tolist()}"
        )
    return half, back


def half_way_grid(images: tuple[Image, Image], maps: tuple[Tensor, Tensor], border: float) -> Grid:
    """The box, on the lattice of the fixed grid, that holds what there is to align half-way between the images.

    Args:
        images: fixed and moving, each on its grid.
        maps: from either to half-way, `[d + 1, d + 1]`: `H` and `H^-1` of `square_root`.
        border: millimetres by which the grid reaches past that.

    >>> import torch
    >>> image, still = Image(torch.rand(1, 1, 6, 6), Grid((6, 6), torch.eye(3).double())), torch.eye(3).double()
    >>> half_way_grid((image, image), (still, still), 1.0).shape
    (8, 8)
    """
    grid = images[0].grid
    reached = []
    for image, to_middle in zip(images, maps, strict=True):
        corners = torch.cartesian_prod(*image.foreground_box().double().T)
        points = image.grid.to_world(corners) @ to_middle[:-1, :-1].T + to_middle[:-1, -1]
        reached.append(grid.to_voxels(points))
    ends = torch.cat(reached)
    first, shape = [], []
    for low, high, edge in zip(ends.amin(0).tolist(), ends.amax(0).tolist(), grid.spacing, strict=True):
        # to a millionth of a voxel, so that rounding does not decide
        begin, end = math.floor(round(low - border / edge, 6)), math.ceil(round(high + border / edge, 6)) + 1
        first.append(begin)
        shape.append(end - begin)
    return grid.cropped(first, shape)


def _halves(u: Tensor, known: Grid, onto: Grid, back: Tensor) -> Tensor:
    """A displacement between fixed and moving as two of a grid half-way: each side goes half of it."""
    half = resample_displacement(u, known, onto, back, antialias=True).div_(2)
    return torch.cat([-half, half], dim=1)


def _after(outer: Tensor, inner: Tensor) -> Tensor:
    """One map after the inverse of another."""
    inverse = invert(inner, tol=_TOL).value
    assert isinstance(inverse, Tensor)
    return ops.compose(outer, inverse)


def _fine(u: Tensor, shape: tuple[int, ...], rounding: float) -> Tensor:
    """A displacement at more voxels, without the kinks that linear interpolation leaves."""
    fine = resize_displacement(u.contiguous(), shape)
    return fine if u.shape[2:] == fine.shape[2:] else ops.gaussian(fine, rounding)
