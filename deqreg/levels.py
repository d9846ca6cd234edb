"""One level of a pyramid: an update, brought to its equilibrium, and how that went."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from deqreg import ops
from deqreg.equilibrium import Anderson, Solution, fixed_point
from deqreg.presets import Level, Preset
from deqreg.registration import LevelReport, Progress
from deqreg.spatial import Grid, level_shape


class Update(Protocol):
    """`z -> f(z)` that remembers the similarity it last saw."""

    similarity: Tensor

    def __call__(self, state: Tensor, /) -> Tensor:
        """The next state."""
        ...


def level_shapes(grid: Grid, level: Level, preset: Preset) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Voxels of the images and of the field on a level.

    Args:
        grid: of the images at their full resolution.
        level: its factor.
        preset: its coarsening.

    >>> import torch
    >>> from deqreg.presets import read_preset
    >>> level_shapes(Grid((64, 64), torch.eye(3, dtype=torch.float64)), Level(2, 10), read_preset("generic"))
    ((32, 32), (16, 16))
    """
    shape = level_shape(grid, min(grid.spacing) * level.factor)
    coarse = grid.resized(shape)
    return shape, level_shape(coarse, min(coarse.spacing) * preset.coarsening)


def compares_structure(level: Level, preset: Preset) -> bool:
    """Whether self-similarity descriptors pull on a level: they do on so many of the finest.

    >>> from deqreg.presets import read_preset
    >>> lung = read_preset("lung")
    >>> [compares_structure(level, lung) for level in lung.levels]
    [False, False, False, True]
    """
    return any(level is fine for fine in preset.levels[::-1][: preset.self_similarity])


def solve_level(
    update: Update,
    start: Tensor,
    level: Level,
    preset: Preset,
    grid: Grid,
    label: str,
    progress: Callable[[Progress], None] | None,
) -> tuple[Tensor, LevelReport]:
    """The equilibrium of an update.

    Args:
        update: of a displacement, or of several beside each other.
        start: `[1, k d, *field]`.
        level: how many steps it may take.
        preset: the solver's memory and tolerance.
        grid: of the level's images.
        label: what the stage is called.
        progress: called after every step.

    Returns:
        The state `[1, k d, *field]`, and how it went.
    """
    started = time.perf_counter()
    similarities: list[float] = []

    def look(step: int, residual: float) -> None:
        similarities.append(float(update.similarity[0]))
        if progress is not None:
            progress(Progress(label, step, level.max_steps, residual, similarities[-1], grid.shape))

    solver = Anderson(memory=preset.memory, tol=preset.tol, max_steps=level.max_steps, norm="rms", patience=None)
    solution = fixed_point(update, start, solver=solver, callback=look)
    value = solution.value
    assert isinstance(value, Tensor)
    return value, _report(solution, value, grid, similarities, time.perf_counter() - started)


def _report(solution: Solution, value: Tensor, grid: Grid, similarities: list[float], seconds: float) -> LevelReport:
    ranges = [ops.jacobian_determinant(u.contiguous()).aminmax() for u in value.split(grid.dims, dim=1)]
    return LevelReport(
        shape=grid.shape,
        field_shape=tuple(value.shape[2:]),
        spacing=grid.spacing,
        steps=int(solution.steps[0]),
        status=solution.status.value,
        sentence=solution.message,
        residuals=tuple(solution.residuals[:, 0].tolist()),
        similarity_before=similarities[0],
        similarity_after=similarities[-1],
        jacobian_range=(min(float(low) for low, _ in ranges), max(float(high) for _, high in ranges)),
        seconds=seconds,
    )
