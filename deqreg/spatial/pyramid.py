"""Coarse-to-fine levels with voxels as nearly cubic as the image allows."""

from __future__ import annotations

from deqreg.spatial.grid import Grid

# Below this many voxels along an axis a window of the similarity no longer fits beside its neighbour.
_SMALLEST_AXIS = 12


def level_shape(grid: Grid, spacing: float) -> tuple[int, ...]:
    """The shape of a grid coarsened to voxels of about `spacing` millimetres.

    An axis whose voxels are already as large keeps them, so that thick slices are not blurred further while the others
    catch up; no axis becomes finer, nor shorter than 12 voxels where it was longer.

    Args:
        grid: the grid to coarsen.
        spacing: millimetres.

    Returns:
        Voxels along each axis.

    >>> import torch
    >>> level_shape(Grid((200, 40), torch.diag(torch.tensor([1.0, 5.0, 1.0], dtype=torch.float64))), 4.0)
    (50, 40)
    """
    shape = []
    for size, fine in zip(grid.shape, grid.spacing, strict=True):
        wanted = round(size * min(fine / spacing, 1.0))
        shape.append(max(wanted, min(size, _SMALLEST_AXIS)))
    return tuple(shape)
