"""Landmarks in CSV files: header `x,y,z`, one point a row, RAS millimetres."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from deqreg.io.files import replacing
from deqreg.io.volumes import Volume

LandmarkSource = str | os.PathLike[str] | torch.Tensor

_HEADERS = {"x,y,z": 3, "x,y": 2}


def read_landmarks(path: str | os.PathLike[str], role: str = "landmarks") -> torch.Tensor:
    """Read points from a CSV file.

    Args:
        path: text with the header `x,y,z` (or `x,y` for 2-D), then one point a row, RAS millimetres.
        role: what they are to the caller ("fixed landmarks"); messages begin with it.

    Returns:
        [P, d] float64.

    Raises:
        ValueError: no such file, another header, a row that is not d finite numbers, no rows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "points.csv"
        >>> write_landmarks(path, torch.tensor([[1.0, 2.0, 3.5]]))
        >>> read_landmarks(path).tolist()
        [[1.0, 2.0, 3.5]]
    """
    path = Path(path)
    name = f"{role} {path}"
    if not path.is_file():
        raise ValueError(f"{name}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{name}: not a text file; give a CSV file with the header x,y,z") from error
    header = lines[0].replace(" ", "").lower() if lines else ""
    if header not in _HEADERS:
        hint = "; ANTs' points (x,y,z,t) are LPS: negate x and y and drop t" if header.startswith("x,y,z,t") else ""
        first = lines[0][:60] if lines else ""
        raise ValueError(f"{name}: its first line must be x,y,z (RAS millimetres), got {first!r}{hint}")
    rows = [
        _row(line, _HEADERS[header], f"{name}: line {number}")
        for number, line in enumerate(lines[1:], start=2)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"{name}: has a header and no points")
    return torch.tensor(rows, dtype=torch.float64)


def write_landmarks(path: str | os.PathLike[str], points: torch.Tensor | np.ndarray) -> None:
    """Write points as `read_landmarks` reads them, with 4 decimals (0.1 micrometres).

    Args:
        path: the file; its folder must exist.
        points: [P, 3] or [P, 2], RAS millimetres.

    Raises:
        ValueError: another shape.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "points.csv"
        >>> write_landmarks(path, np.array([[1.0, -2.0, 3.5]]))
        >>> path.read_text().split()
        ['x,y,z', '1.0000,-2.0000,3.5000']
    """
    array = np.asarray(torch.as_tensor(points).detach().cpu(), dtype=np.float64)
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise ValueError(f"points must be [P, 3] or [P, 2], got {list(array.shape)}")
    header = "x,y,z" if array.shape[1] == 3 else "x,y"
    rows = (",".join(f"{value:.4f}" for value in row) for row in array)
    with replacing(path) as temporary:
        temporary.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")


def read_landmark_pair(
    fixed_points: LandmarkSource, moving_points: LandmarkSource, fixed: Volume, moving: Volume
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read corresponding points of a pair of images: row i of one is row i of the other.

    Args:
        fixed_points: points in the fixed image: the path of a CSV file, or [P, d] on any device, RAS millimetres.
        moving_points: the same points in the moving image.
        fixed: the fixed image.
        moving: the moving image.

    Returns:
        Two [P, d] float64 tensors on the CPU, RAS millimetres.

    Raises:
        ValueError: as `read_landmarks` and `check_landmarks_inside`, neither a path nor a tensor, or different numbers
            of points.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "points.csv"
        >>> write_landmarks(path, torch.tensor([[1.0, 2.0, 3.0]]))
        >>> image = Volume(torch.rand(4, 5, 6), np.eye(4))
        >>> [points.shape[0] for points in read_landmark_pair(path, path, image, image)]
        [1, 1]
    """
    sources, images, roles = (fixed_points, moving_points), (fixed, moving), ("fixed landmarks", "moving landmarks")
    points = _points(fixed_points, roles[0]), _points(moving_points, roles[1])
    for given, source, image, role in zip(points, sources, images, roles, strict=True):
        check_landmarks_inside(given, image, role if isinstance(source, torch.Tensor) else f"{role} {source}")
    if len(points[0]) != len(points[1]):
        places = ["a tensor" if isinstance(source, torch.Tensor) else source for source in sources]
        raise ValueError(
            f"fixed and moving landmarks must be the same points in the same order, "
            f"got {len(points[0])} in {places[0]} and {len(points[1])} in {places[1]}"
        )
    return points


def check_landmarks_inside(points: torch.Tensor, image: Volume, name: str = "landmarks") -> None:
    """Raise where a point is not finite or lies outside the box that the image's voxels fill.

    Args:
        points: [P, d], P at least 1, RAS millimetres.
        image: the image that they belong to.
        name: what messages call the points.

    Raises:
        ValueError: another shape, or a point that is not finite; or a point outside: which, by how much, and whether
            x and y seem to be LPS.

    Example:
        >>> image = Volume(torch.rand(4, 5, 6), np.eye(4))
        >>> check_landmarks_inside(torch.tensor([[3.4, 0.0, 0.0]]), image)
    """
    if points.ndim != 2 or points.shape[1] != image.dimensions or len(points) == 0:
        raise ValueError(f"{name}: must be [P, {image.dimensions}] for {image.name}, got {list(points.shape)}")
    array = points.detach().cpu().numpy().astype(np.float64)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        worst = int(finite.argmin())
        raise ValueError(f"{name}: must be finite, got {array[worst].tolist()} in point {worst + 1}")
    outside = _distance_outside(array, image)
    count = int((outside > 0).sum())
    if count == 0:
        return
    worst = int(outside.argmax())
    place = ", ".join(f"{value:g}" for value in array[worst])
    flipped = array * np.array([-1.0, -1.0, 1.0])[: image.dimensions]
    hint = (
        "negating x and y puts all of them inside, so these look like LPS"
        if not (_distance_outside(flipped, image) > 0).any()
        else "are they in RAS millimetres, for this image?"
    )
    raise ValueError(
        f"{name}: {count} of {len(array)} points lie outside {image.name}, the farthest by "
        f"{outside[worst]:.1f} mm (point {worst + 1}: {place}); points must be RAS millimetres: {hint}"
    )


def _distance_outside(points: np.ndarray, image: Volume) -> np.ndarray:
    """[P] millimetres to the box of the image's voxels, each half a voxel about its centre; 0 inside."""
    matrix = image.matrix
    voxels = (points - matrix[:-1, -1]) @ np.linalg.inv(matrix[:-1, :-1]).T
    nearest = np.clip(voxels, -0.5, np.array(image.data.shape) - 0.5)
    # 1e-4 voxels: a point written with four decimals on the very border is inside
    away = np.where(np.abs(voxels - nearest) > 1e-4, voxels - nearest, 0.0)
    return np.linalg.norm(away @ matrix[:-1, :-1].T, axis=1)


def _points(source: LandmarkSource, role: str) -> torch.Tensor:
    """Give a file's points, or a tensor as if it had been read."""
    if isinstance(source, torch.Tensor):
        return source.detach().to("cpu", torch.float64)
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"{role}: must be a CSV file or a [P, d] tensor, got {type(source).__name__}")
    return read_landmarks(source, role)


def _row(line: str, count: int, place: str) -> list[float]:
    words = line.split(",")
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{place}: must be {count} numbers separated by commas, got {line.strip()[:60]!r}")
    return values
