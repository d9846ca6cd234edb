"""Rigid and affine alignment of two images in the world, coarse to fine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deqreg import ops
from deqreg.spatial.grid import Grid
from deqreg.spatial.intensity import background
from deqreg.spatial.pyramid import level_shape
from deqreg.spatial.quasi_newton import minimise
from deqreg.spatial.resample import resize, resize_mask

# Variance of the images' common noise: one per cent of the intensity range. Shared, so that equal images stay in place.
_NOISE = 1e-4
# In voxels: what a finer stage, or the deformation, takes up anyway.
_SMALLEST_STEP = 1e-2
# A newborn's brain is a third of an adult's, a lung breathes out to a fifth; noise sends the determinant to 1e5 or 0.
_LARGEST_VOLUME_RATIO = 10.0


@dataclass(frozen=True, eq=False)
class Image:
    """An image in the world, with an optional mask of what to look at.

    Args:
        data: `[1, 1, *S]`, scaled to about [0, 1].
        grid: where its voxels lie.
        mask: `[1, 1, *S]`, zero outside, or None.
    """

    data: Tensor
    grid: Grid
    mask: Tensor | None = None

    def at(self, spacing: float) -> Image:
        """The image at voxels of about `spacing` millimetres."""
        shape = level_shape(self.grid, spacing)
        mask = None if self.mask is None else resize_mask(self.mask, shape)
        return Image(resize(self.data, shape), self.grid.resized(shape), mask)

    def cropped(self, first: Sequence[int], shape: Sequence[int]) -> Image:
        """The box of `shape` voxels that begins at voxel `first`."""
        box = (..., *(slice(begin, begin + size) for begin, size in zip(first, shape, strict=True)))
        mask = None if self.mask is None else self.mask[box].contiguous()
        return Image(self.data[box].contiguous(), self.grid.cropped(first, shape), mask)

    def foreground_box(self) -> Tensor:
        """First and last voxel, `[2, d]`, of the box around the mask, or around the foreground."""
        inside = self.data[0, 0] > background(self.data[0, 0]) if self.mask is None else self.mask[0, 0] > 0
        ends = []
        for axis in range(inside.ndim):
            # a maximum of bytes: torch vectorises that, and `any` not
            filled = inside.view(torch.uint8).amax([a for a in range(inside.ndim) if a != axis])
            where = filled.nonzero()
            ends.append((int(where[0]), int(where[-1])) if len(where) else (0, inside.shape[axis] - 1))
        return torch.tensor(ends).T

    def centre_of_mass(self) -> Tensor:
        """The world point `[d]` around which the brightness, or the mask, balances."""
        weight = (self.data if self.mask is None else self.mask)[0, 0].cpu()
        lowest = weight.min().double()
        total = weight.sum().double() - lowest * weight.numel()
        if total <= 0:
            return self.grid.centre
        voxel = []
        for axis, size in enumerate(weight.shape):
            others = [a for a in range(weight.ndim) if a != axis]
            along = weight.sum(others).double() - lowest * (weight.numel() / size)
            voxel.append((along * torch.arange(size, dtype=torch.float64)).sum() / total)
        return self.grid.to_world(torch.stack(voxel)[None])[0]


@dataclass(frozen=True)
class AffineStage:
    """One level of the alignment.

    Args:
        spacing: voxel size in millimetres.
        degrees: `"translation"`, `"rigid"` or `"affine"`.
        steps: most iterations of the optimiser.
    """

    spacing: float
    degrees: str
    steps: int = 30

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.degrees not in ("translation", "rigid", "affine"):
            raise ValueError(f"degrees must be 'translation', 'rigid' or 'affine', got {self.degrees!r}")
        if self.spacing <= 0 or self.steps < 1:
            raise ValueError(f"spacing and steps must be positive, got {self.spacing} and {self.steps}")


def generators(degrees: str, dims: int) -> Tensor:
    """The matrices `[P, d + 1, d + 1]` whose combinations, exponentiated, are the maps of a kind."""
    found = []
    pairs = [(a, b) for a in range(dims) for b in range(dims)]
    for a, b in pairs if degrees == "affine" else [(a, b) for a, b in pairs if a < b] if degrees == "rigid" else []:
        matrix = torch.zeros(dims + 1, dims + 1, dtype=torch.float64)
        matrix[a, b] = 1.0
        if degrees == "rigid":
            matrix[b, a] = -1.0
        found.append(matrix)
    for a in range(dims):
        matrix = torch.zeros(dims + 1, dims + 1, dtype=torch.float64)
        matrix[a, dims] = 1.0
        found.append(matrix)
    return torch.stack(found)


@dataclass(frozen=True, eq=False)
class _Objective:
    """Similarity of two images under a world map `start` exp(sum_i p_i G_i), about the fixed image's centre.

    A parameter is a length in millimetres: turns and strains are divided by the radius at which they act.
    """

    fixed: Image
    moving: Image
    start: Tensor
    basis: Tensor
    centre: Tensor
    radius: float
    window: int

    @cached_property
    def still(self) -> Tensor:
        """No displacement."""
        return self.fixed.data.new_zeros(1, self.fixed.grid.dims, *self.fixed.grid.shape)

    def world(self, parameters: Tensor) -> Tensor:
        dims = self.fixed.grid.dims
        scaled = parameters.clone()
        scaled[: len(parameters) - dims] = parameters[: len(parameters) - dims] / self.radius
        local = torch.matrix_exp(torch.einsum("p,pij->ij", scaled, self.basis))
        centre = torch.eye(dims + 1, dtype=torch.float64)
        centre[:dims, dims] = self.centre
        return self.start @ centre @ local @ torch.linalg.inv(centre)

    def loss(self, parameters: Tensor) -> Tensor:
        fixed, moving = self.fixed, self.moving
        mapping = fixed.grid.map_to(moving.grid, self.world(parameters)).to(fixed.data)[None]
        warped = ops.warp(moving.data, self.still, affine=mapping)
        mask = fixed.mask
        if moving.mask is not None:
            covered = ops.warp(
                moving.mask, self.still, affine=mapping.detach(), interpolation="nearest", padding="zeros"
            )
            mask = covered if mask is None else torch.maximum(mask, covered)
        value = ops.lncc(fixed.data, warped, window=self.window, mask=mask, epsilon=_NOISE, shared=_NOISE)
        return -value.double().sum()


def _optimise(objective: _Objective, steps: int) -> tuple[Tensor, float]:
    """Maximise the similarity from no motion; returns the world map and the similarity."""

    def loss_and_gradient(parameters: Tensor) -> tuple[float, Tensor]:
        parameters = parameters.clone().requires_grad_()
        loss = objective.loss(parameters)
        loss.backward()
        assert parameters.grad is not None
        return float(loss.detach()), parameters.grad

    start = torch.zeros(len(objective.basis), dtype=torch.float64)
    voxel = max(objective.fixed.grid.spacing)
    found, loss = minimise(loss_and_gradient, start, steps=steps, first_step=voxel, tolerance=_SMALLEST_STEP * voxel)
    return objective.world(found), -loss


def _keeps_a_volume(world: Tensor) -> bool:
    """Whether a world map can be inverted, and changes volumes by no more than anatomy differs."""
    volume = float(torch.linalg.det(world))
    return 1 / _LARGEST_VOLUME_RATIO < volume < _LARGEST_VOLUME_RATIO


def candidates(fixed: Image, moving: Image) -> list[Tensor]:
    """World maps to start from: none, centre on centre of mass, centre on centre of the field of view."""
    dims = fixed.grid.dims
    starts = [torch.eye(dims + 1, dtype=torch.float64)]
    for shift in (moving.centre_of_mass() - fixed.centre_of_mass(), moving.grid.centre - fixed.grid.centre):
        matrix = torch.eye(dims + 1, dtype=torch.float64)
        matrix[:dims, dims] = shift
        if all((matrix - known).abs().max() > 1e-3 for known in starts):
            starts.append(matrix)
    return starts


def align(
    fixed: Image,
    moving: Image,
    stages: Sequence[AffineStage],
    *,
    window: int = 5,
    progress: Callable[[str, float], None] | None = None,
) -> Tensor:
    """The affine world map under which two images are most alike.

    Maximises the mean squared local correlation over maps `p_moving = A p_fixed + t`, written as a product of matrix
    exponentials about the middle of the fixed image, by BFGS, a stage after the other. A stage that changes volumes
    more than tenfold is dropped with those after it, with a warning. The first stage starts from the
    images as they lie, from their centres of mass and from the centres of their fields of view, and the best goes on.

    Args:
        fixed: the image that stays.
        moving: the image that is aligned.
        stages: coarse to fine.
        window: edge of the similarity's window, in voxels of each stage.
        progress: called with the stage's kind of map and the similarity reached.

    Returns:
        `[d + 1, d + 1]` float64, maps fixed world points to moving world points.

    Raises:
        ValueError: when the images differ in dimension, or no stage is given.

    Reference: squared local correlation, Avants et al., Medical Image Analysis 2008 (12:26-41), eq. 5.

    >>> import torch
    >>> ramp = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    >>> image = Image(ops.gaussian(ramp, 2.0), Grid((24, 24), torch.eye(3, dtype=torch.float64)))
    >>> world = align(image, image, [AffineStage(1.0, "rigid", 5)])
    >>> bool((world - torch.eye(3)).abs().max() < 0.05)
    True
    """
    if fixed.grid.dims != moving.grid.dims:
        raise ValueError(f"moving must be {fixed.grid.dims}-D like fixed, got {moving.grid.dims}-D")
    if not stages:
        raise ValueError("stages must hold at least one AffineStage, got none")
    starts = candidates(fixed, moving)
    world = starts[0]
    for stage in stages:
        level, other = fixed.at(stage.spacing), moving.at(stage.spacing)
        basis = generators(stage.degrees, fixed.grid.dims)
        extent = [s * n for s, n in zip(level.grid.spacing, level.grid.shape, strict=True)]
        radius, centre = sum(extent) / len(extent) / 4, level.centre_of_mass()
        reached = [
            _optimise(_Objective(level, other, start, basis, centre, radius, window), stage.steps) for start in starts
        ]
        reached = [(found, value) for found, value in reached if _keeps_a_volume(found)]
        if not reached:
            warnings.warn(
                f"The {stage.degrees} alignment at {stage.spacing:g} mm ran away and was dropped: these images may "
                "not show the same thing.",
                stacklevel=2,
            )
            break
        world, similarity = max(reached, key=lambda pair: pair[1])
        starts = [world]
        if progress is not None:
            progress(stage.degrees, similarity)
    return world
