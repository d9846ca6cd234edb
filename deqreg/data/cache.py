"""Cases in memory: scaled, perhaps coarser, an intensity a byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deqreg import io
from deqreg.data.dataset import Case
from deqreg.spatial import Grid, level_shape, resample, resize, scale_intensities

STORAGE = {"uint8": torch.uint8, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A case in memory.

    Attributes:
        name: of its file.
        stored: `[*S]`, intensities in [0, 1], as float16, or as uint8 in steps of 1/255.
        spacing: voxel edges, millimetres.
        labels: `[*S]`, integers from 0: places in `values`.
        mask: `[*S]`, bool.
        points: `[P, d]` float32, in voxels of `stored`.
        values: the labels on file, in order, of all cases loaded together; empty where none has labels.
    """

    name: str
    stored: Tensor
    spacing: tuple[float, ...]
    labels: Tensor | None = None
    mask: Tensor | None = None
    points: Tensor | None = None
    values: tuple[int, ...] = ()

    def image(self, device: torch.device) -> Tensor:
        """`[1, 1, *S]` float32, in [0, 1]."""
        image = self.stored.to(device)[None, None].float()
        return image / 255 if self.stored.dtype == torch.uint8 else image


def load_cases(
    cases: Sequence[Case], spacing: float | None = None, storage: str = "uint8", labels: bool = True
) -> dict[Path, CachedCase]:
    """Read cases into memory, each scaled as `deqreg.register` scales images.

    Args:
        cases: what to read; one that comes twice is read once.
        spacing: millimetres; images with finer voxels are smoothed and sampled at about this. None keeps them.
        storage: `"uint8"`, a byte a voxel and steps of 1/255, or `"float16"`, two and finer ones.
        labels: whether to read segmentations.

    Returns:
        The file of each image to the case.

    Raises:
        ValueError: another storage, or a file that is not what it has to be.

    Example:
        >>> import tempfile, numpy as np
        >>> path = Path(tempfile.mkdtemp()) / "image.nii.gz"
        >>> io.write_volume(path, torch.rand(32, 32, 32), np.eye(4))
        >>> load_cases([Case(path)], spacing=2.0)[path].stored.shape
        torch.Size([16, 16, 16])
    """
    if storage not in STORAGE:
        raise ValueError(f"storage must be one of {', '.join(STORAGE)}, got {storage!r}")
    if spacing is not None and spacing <= 0:
        raise ValueError(f"spacing must be positive or None, got {spacing}")
    wanted = {case.image: case for case in cases}
    # unpacking and resampling leave Python's lock, so threads help
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        loaded = list(pool.map(lambda case: _load(case, spacing, storage, labels), wanted.values()))
    found = {int(value) for case in loaded if case.labels is not None for value in case.labels.unique()}
    values = tuple(sorted(found | {0})) if found else ()
    return {path: _renumbered(case, values) for path, case in zip(wanted, loaded, strict=True)}


def _load(case: Case, spacing: float | None, storage: str, labels: bool) -> CachedCase:
    volume = io.read_image(case.image, "image")
    mask = None if case.mask is None else io.read_mask(case.mask, volume)
    grid = Grid.of(volume.data.shape, volume.matrix)
    coarse = grid if spacing is None else grid.resized(level_shape(grid, spacing))
    image = resize(scale_intensities(volume.data, None if mask is None else mask.data)[None, None], coarse.shape)[0, 0]
    stored = image.mul_(255).round_().to(torch.uint8) if storage == "uint8" else image.to(torch.float16)
    parcels = None
    if labels and case.label is not None:
        parcels = _nearest(io.read_labels(case.label, volume).data, grid, coarse).clamp_(min=0).int()
    points = read_points(case, volume)
    return CachedCase(
        case.image.name,
        stored,
        coarse.spacing,
        parcels,
        None if mask is None else _nearest(mask.data, grid, coarse) > 0,
        None if points is None else coarse.to_voxels(points).float(),
    )


def _nearest(data: Tensor, grid: Grid, onto: Grid) -> Tensor:
    if grid.shape == onto.shape:
        return data
    return resample(data[None, None], grid, onto, interpolation="nearest")[0, 0]


def read_points(case: Case, volume: io.Volume) -> Tensor | None:
    """The landmarks of a case, of either kind.

    Args:
        case: what is known of the image.
        volume: the image.

    Returns:
        `[P, d]` float64, RAS millimetres; None where it has none.

    Raises:
        ValueError: a file that is not what it has to be, or a point outside of the image.

    Example:
        >>> import tempfile, numpy as np
        >>> path = Path(tempfile.mkdtemp()) / "keypoints.csv"
        >>> _ = path.write_text("1,2,3")
        >>> volume = io.Volume(torch.zeros(8, 8, 8), np.diag([2.0, 2, 2, 1]))
        >>> read_points(Case(Path("image.nii.gz"), keypoints=path), volume).tolist()
        [[2.0, 4.0, 6.0]]
    """
    if case.landmarks is not None:
        points = io.read_landmarks(case.landmarks)
        io.check_landmarks_inside(points, volume, f"landmarks {case.landmarks}")
        return points
    if case.keypoints is not None:
        grid = Grid.of(volume.data.shape, volume.matrix)
        return grid.to_world(_keypoints(case.keypoints, grid))
    return None


def _keypoints(path: Path, grid: Grid) -> Tensor:
    """`[P, d]` float64, voxels, from Learn2Reg's files."""
    try:
        rows = [[float(word) for word in line.replace(",", " ").split()] for line in path.read_text().splitlines()]
        points = torch.tensor([row for row in rows if row], dtype=torch.float64)
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"keypoints {path}: must be rows of {grid.dims} numbers, without a header: {error}") from error
    if points.ndim != 2 or points.shape[1] != grid.dims:
        raise ValueError(f"keypoints {path}: must be rows of {grid.dims} numbers, got {list(points.shape)}")
    last = torch.tensor(grid.shape) - 0.5
    if bool(((points < -0.5) | (points > last)).any()):
        raise ValueError(f"keypoints {path}: must be voxels of an image of {list(grid.shape)}, got one outside of it")
    return points


def _renumbered(case: CachedCase, values: tuple[int, ...]) -> CachedCase:
    """The case with its labels as places in `values`, in the narrowest type that torch indexes fast from."""
    if case.labels is None:
        return replace(case, values=values)
    places = torch.searchsorted(torch.tensor(values, dtype=torch.int32), case.labels)
    return replace(case, labels=places.to(torch.uint8 if len(values) <= 256 else torch.int32), values=values)
