"""Slices through a grid, laid on the screen as radiologists look at them."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np

_POSITIVE, _NEGATIVE = "RAS", "LPI"  # the letters of the world's axes, towards plus and towards minus
# plane -> the world axis that it is cut across, the one that runs down the screen, the one that runs to its right
_WORLD_AXES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
_MARGIN = 0.06  # of the content's extent, shown around it


@dataclass(frozen=True)
class Edge:
    """One edge of a slice on the screen.

    Attributes:
        axis: the array axis that runs along it.
        flipped: whether the array runs against the screen.
        spacing: millimetres between voxels along it.
        extent: millimetres from the first to the last face of the image.
        shown: (first, last) millimetre that is shown, from the start of the edge.
        letters: where its start and its end point in the patient, such as ("R", "L").
    """

    axis: int
    flipped: bool
    spacing: float
    extent: float
    shown: tuple[float, float]
    letters: tuple[str, str]

    @property
    def length(self) -> float:
        """Millimetres shown."""
        return self.shown[1] - self.shown[0]

    def millimetres(self, voxel: np.ndarray) -> np.ndarray:
        """Where a voxel coordinate lies along the edge, in millimetres from its start."""
        place = (voxel + 0.5) * self.spacing
        return self.extent - place if self.flipped else place


@dataclass(frozen=True)
class Plane:
    """One slice of a volume and how it lies on the screen.

    Attributes:
        name: "axial", "coronal" or "sagittal": the nearest for an oblique grid.
        label: the name and where the slice is in the world.
        through: the array axis that it is cut across; None for a 2-D image.
        index: the voxel at which it is cut.
        down: the screen's vertical edge.
        right: the screen's horizontal edge.
    """

    name: str
    label: str
    through: int | None
    index: int
    down: Edge
    right: Edge

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Take the slice out of [*S] as [rows, columns], the top row first."""
        return self.lay(volume if self.through is None else np.take(volume, self.index, axis=self.through))

    def lay(self, image: np.ndarray) -> np.ndarray:
        """Turn a slice in array order to the screen's [rows, columns]."""
        if self.down.axis > self.right.axis:
            image = image.T
        return image[:: -1 if self.down.flipped else 1, :: -1 if self.right.flipped else 1]

    def slab(self, field: np.ndarray) -> np.ndarray:
        """Take the slice and its two neighbours out of [d, *S]: all that a central difference needs."""
        if self.through is None:
            return field
        return np.take(field, range(self.index - 1, self.index + 2), axis=self.through + 1)

    def voxels(self, shape: tuple[int, ...]) -> np.ndarray:
        """Give the coordinates [d, rows, columns] of the slice's voxels in a grid of this shape."""
        result = np.full((len(shape), *self.cut(np.empty(shape, bool)).shape), float(self.index))
        for edge, view in ((self.down, (slice(None), None)), (self.right, (None, slice(None)))):
            along = np.arange(shape[edge.axis], dtype=np.float64)
            result[edge.axis] = along[:: -1 if edge.flipped else 1][view]
        return result

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of the whole slice in screen millimetres, as matplotlib's `extent`."""
        return 0.0, self.right.extent, self.down.extent, 0.0


def planes(affine: np.ndarray, content: np.ndarray) -> tuple[Plane, ...]:
    """Choose the slices to show: three through the middle of the content, or the image itself in 2-D.

    The screen is radiological: the patient's right on the left, front and head up; sagittal slices look from the left,
    the front on the left. On an oblique grid the slices follow the grid and take the letters of the nearest axes.

    Args:
        affine: [4, 4], voxels to RAS millimetres.
        content: [*S] bool, the voxels that matter.

    Returns:
        Axial, coronal and sagittal; in 2-D axial alone.

    Example:
        >>> [plane.right.letters for plane in planes(np.eye(4), np.ones((8, 8, 8), bool))]
        [('R', 'L'), ('R', 'L'), ('A', 'P')]
    """
    voxels = [np.flatnonzero(content.any(axis=tuple(b for b in range(content.ndim) if b != a)))
              for a in range(content.ndim)]  # fmt: skip
    ranges = [(int(found[0]), int(found[-1])) for found in voxels]
    oriented = nib.orientations.io_orientation(affine).astype(int)
    array_axis = {int(world): axis for axis, (world, _) in enumerate(oriented) if axis < content.ndim}
    centre = [(low + high) // 2 for low, high in ranges]
    # an interior slice, so that the Jacobian has both neighbours
    centre = [min(max(index, 1), size - 2) for index, size in zip(centre, content.shape, strict=True)]
    result = []
    for name, (across, down, right) in _WORLD_AXES.items():
        if not {down, right} <= array_axis.keys():
            continue
        edges = [
            _edge(affine, content.shape, ranges, array_axis[world], world, int(oriented[array_axis[world], 1]))
            for world in (down, right)
        ]
        through = array_axis.get(across)
        position = (affine @ [*(centre if content.ndim == 3 else [*centre, 0]), 1])[across]
        letter = (_POSITIVE if position >= 0 else _NEGATIVE)[across]
        label = name if through is None else f"{name}  {letter} {abs(position):.0f} mm"
        result.append(Plane(name, label, through, 0 if through is None else centre[through], *edges))
    return tuple(result)


def content_of(fixed: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Find the voxels that matter: those of the mask, else those that stand out from the image's darkest part.

    Args:
        fixed: [*S], the fixed image.
        mask: [*S], above zero inside.

    Returns:
        [*S] bool, at least one voxel true.

    Example:
        >>> image = np.zeros((8, 8)); image[2:5, 3:6] = 100
        >>> int(content_of(image).sum())
        9
    """
    if mask is not None:
        return mask > 0
    low, high = np.percentile(fixed[(slice(None, None, 2),) * fixed.ndim], (1, 99))
    inside = fixed > low + 0.1 * (high - low)
    return inside if inside.any() else np.ones(fixed.shape, bool)


def _edge(
    affine: np.ndarray, shape: tuple[int, ...], ranges: list[tuple[int, int]], axis: int, world: int, sign: int
) -> Edge:
    """Run an array axis along the screen so that the world axis falls: R before L, A before P, S before I."""
    spacing = float(np.linalg.norm(affine[:3, axis]))
    flipped = sign > 0
    low, high = ranges[axis]
    margin = _MARGIN * (high + 1 - low)
    first, last = max(0.0, low - margin) * spacing, min(shape[axis], high + 1 + margin) * spacing
    extent = shape[axis] * spacing
    shown = (extent - last, extent - first) if flipped else (first, last)
    return Edge(axis, flipped, spacing, extent, shown, (_POSITIVE[world], _NEGATIVE[world]))
