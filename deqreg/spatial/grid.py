"""Where the voxels of an image lie in the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in the world.

    `world = affine[:d, :d] x + affine[:d, d]`, `x` a voxel index in array order.

    Args:
        shape: voxels along each array axis, 2 or 3 of them.
        affine: `[d + 1, d + 1]` float64, voxels to RAS millimetres.

    Raises:
        ValueError: when shape and affine disagree, or the affine has no inverse.

    >>> import torch
    >>> grid = Grid((4, 6), torch.diag(torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)))
    >>> grid.spacing
    (2.0, 3.0)
    """

    shape: tuple[int, ...]
    affine: Tensor

    def __post_init__(self) -> None:
        """Check that this is a grid."""
        dims = len(self.shape)
        if dims not in (2, 3) or self.affine.shape != (dims + 1, dims + 1) or self.affine.dtype != torch.float64:
            raise ValueError(
                f"affine must be [{dims + 1}, {dims + 1}] float64 for shape {tuple(self.shape)}, "
                f"got {list(self.affine.shape)} {self.affine.dtype}"
            )
        linear = self.affine[:dims, :dims]
        # of a voxel's volume: its edges may be micrometres
        if not abs(float(torch.linalg.det(linear))) > 1e-6 * float(linear.norm(dim=0).prod()):
            raise ValueError("affine must be invertible, got determinant 0")

    @classmethod
    def of(cls, shape: Sequence[int], affine: np.ndarray) -> Grid:
        """The grid of an array's shape and affine, `[d + 1, d + 1]`, as files have them.

        >>> Grid.of((4, 6), np.diag([2.0, 3.0, 1.0])).spacing
        (2.0, 3.0)
        """
        return cls(tuple(shape), torch.from_numpy(np.ascontiguousarray(affine, dtype=np.float64)))

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between neighbouring voxels along each array axis."""
        return tuple(float(s) for s in self.affine[: self.dims, : self.dims].norm(dim=0))

    @property
    def centre(self) -> Tensor:
        """The middle of the grid in the world, `[d]`."""
        return self.to_world((torch.tensor(self.shape, dtype=torch.float64) - 1)[None] / 2)[0]

    def to_world(self, voxels: Tensor) -> Tensor:
        """Points `[P, d]` from voxels to the world."""
        return voxels.to(self.affine) @ self.affine[: self.dims, : self.dims].T + self.affine[: self.dims, self.dims]

    def to_voxels(self, points: Tensor) -> Tensor:
        """Points `[P, d]` from the world to voxels."""
        return (points.to(self.affine) - self.affine[: self.dims, self.dims]) @ torch.linalg.inv(
            self.affine[: self.dims, : self.dims]
        ).T

    def resized(self, shape: Sequence[int]) -> Grid:
        """A grid of another number of voxels over the same extent, faces on faces."""
        factor = torch.tensor([old / new for old, new in zip(self.shape, shape, strict=True)], dtype=torch.float64)
        voxels = torch.eye(self.dims + 1, dtype=torch.float64)
        voxels[: self.dims, : self.dims] = torch.diag(factor)
        voxels[: self.dims, self.dims] = (factor - 1) / 2
        return Grid(tuple(shape), self.affine @ voxels)

    def cropped(self, first: Sequence[int], shape: Sequence[int]) -> Grid:
        """The box of `shape` voxels that begins at voxel `first`; it may reach past the grid."""
        voxels = torch.eye(self.dims + 1, dtype=torch.float64)
        voxels[: self.dims, self.dims] = torch.tensor(list(first), dtype=torch.float64)
        return Grid(tuple(shape), self.affine @ voxels)

    def upright(self) -> Grid:
        """The same voxels, counted to the right, to the front and to the top, as near as their axes come to that.

        >>> facing = torch.tensor([[0.0, -2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        >>> grid = Grid((4, 6), facing).upright()
        >>> grid.shape, grid.affine[:2].tolist()
        ((6, 4), [[2.0, 0.0, -10.0], [0.0, 1.0, 0.0]])
        """
        dims = self.dims
        along = self.affine[:dims, :dims] / self.affine[:dims, :dims].norm(dim=0)
        order = max(permutations(range(dims)), key=lambda axes: float(along[range(dims), axes].abs().sum()))
        voxels = torch.zeros_like(self.affine)
        voxels[dims, dims] = 1
        for world, axis in enumerate(order):
            back = float(along[world, axis]) < 0
            voxels[axis, world] = -1 if back else 1
            voxels[axis, dims] = self.shape[axis] - 1 if back else 0
        return Grid(tuple(self.shape[axis] for axis in order), self.affine @ voxels)

    def map_to(self, other: Grid, world: Tensor | None = None) -> Tensor:
        """The voxel map `[d, d + 1]` from this grid to another, through a world map `[d + 1, d + 1]` if given."""
        through = self.affine if world is None else world.to(self.affine) @ self.affine
        return (torch.linalg.inv(other.affine) @ through)[: self.dims]
