"""Displacement fields in NIfTI as ITK and ANTs write them, and their two forms: in the world and between voxels.

Files hold LPS millimetres, as ITK does; everything that enters or leaves a function here is RAS millimetres. A field
takes points of the fixed image to points of the moving image.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deqreg.io.affines import read_affine
from deqreg.io.files import open_nifti, read_values, world_code
from deqreg.io.volumes import grid_matrix, save_nifti

_VECTOR_INTENT = 1007
# Fields of the same shape that hold something else: absolute positions, or NiftyReg's own kinds.
_OTHER_FIELDS = {"Mapping": "SPM deformation of absolute positions", "NREG_TRANS": "NiftyReg transformation"}


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A displacement on a grid: `p_moving = p_fixed + displacement(p_fixed)`.

    Attributes:
        displacement: [d, X, Y, Z] or [d, X, Y] float32, RAS millimetres; component a along world axis a.
        affine: [4, 4] float64, voxels of the grid to RAS millimetres.
        space: the NIfTI code of the grid's world (`Volume.space`).

    Raises:
        ValueError: a displacement or an affine of another shape.

    Example:
        >>> DisplacementField(torch.zeros(3, 4, 5, 6), np.eye(4)).displacement.shape
        torch.Size([3, 4, 5, 6])
    """

    displacement: torch.Tensor
    affine: np.ndarray
    space: int = 1

    def __post_init__(self) -> None:
        """Check the shapes."""
        _check_field(self.displacement)
        if np.shape(self.affine) != (4, 4):
            raise ValueError(f"affine must be [4, 4], got {list(np.shape(self.affine))}")


def world_displacement(voxels: torch.Tensor, fixed_affine: np.ndarray, moving_affine: np.ndarray) -> torch.Tensor:
    """Turn a map between voxels into a displacement in the world: `d(x) = A_moving y(x) - A_fixed x`.

    Args:
        voxels: [d, *S], `y(x)`: the voxel coordinates in the moving image for each voxel x of the fixed grid.
        fixed_affine: [4, 4] or [d + 1, d + 1], voxels to RAS millimetres.
        moving_affine: the same for the moving image.

    Returns:
        [d, *S] of the same type, RAS millimetres. The difference is taken in float64, because both terms may be metres
        from the origin.

    Raises:
        ValueError: shapes other than these.

    Example:
        >>> identity = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"))
        >>> d = world_displacement(identity + 1, np.diag([2.0, 2, 3, 1]), np.diag([2.0, 2, 3, 1]))
        >>> d[:, 0, 0, 0].tolist()
        [2.0, 2.0, 3.0]
    """
    fixed, moving = _matrices(voxels, fixed_affine, moving_affine)
    return _affine_in_field(voxels, moving[:-1, :-1], -fixed[:-1, :-1], moving[:-1, -1] - fixed[:-1, -1])


def voxel_map(displacement: torch.Tensor, fixed_affine: np.ndarray, moving_affine: np.ndarray) -> torch.Tensor:
    """Turn a displacement in the world into a map between voxels: `y(x) = A_moving^-1 (A_fixed x + d(x))`.

    Args:
        displacement: [d, *S] on the fixed grid, RAS millimetres.
        fixed_affine: [4, 4] or [d + 1, d + 1], voxels to RAS millimetres.
        moving_affine: the same for the moving image.

    Returns:
        [d, *S] of the same type: voxel coordinates in the moving image.

    Raises:
        ValueError: shapes other than these.

    Example:
        >>> y = voxel_map(torch.zeros(3, 4, 4, 4), np.diag([2.0, 2, 2, 1]), np.eye(4))
        >>> y[:, 1, 1, 3].tolist()
        [2.0, 2.0, 6.0]
    """
    fixed, moving = _matrices(displacement, fixed_affine, moving_affine)
    inverse = np.linalg.inv(moving)
    total = inverse @ fixed
    return _affine_in_field(displacement, inverse[:-1, :-1], total[:-1, :-1], total[:-1, -1])


def write_displacement(
    path: str | os.PathLike[str], displacement: torch.Tensor, affine: np.ndarray, *, space: int = 1
) -> None:
    """Write a displacement as ITK and ANTs read it.

    NIfTI of shape (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2), intent 1007, components in LPS millimetres.

    Args:
        path: ending in .nii or .nii.gz; its folder must exist.
        displacement: [d, *S] on the fixed grid, RAS millimetres: `p_moving = p_fixed + d(p_fixed)`.
        affine: [4, 4], voxels of the fixed grid to RAS millimetres.
        space: the NIfTI code of the world (`Volume.space`).

    Raises:
        ValueError: another shape or suffix, or values that are not finite.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "displacement.nii.gz"
        >>> write_displacement(path, torch.ones(3, 4, 5, 6), np.eye(4))
        >>> read_displacement(path).displacement.shape
        torch.Size([3, 4, 5, 6])
    """
    _check_field(displacement)
    # component slowest and x fastest, as on file; a copy, for the sign of x and y turns over in place
    ordered = displacement.detach().cpu().permute(0, *range(displacement.ndim - 1, 0, -1))
    ordered = ordered.to(torch.float32).clone(memory_format=torch.contiguous_format)
    ordered[:2].neg_()
    dimensions, *extent = displacement.shape
    array = ordered.numpy().T.reshape((*extent, *[1] * (4 - dimensions), dimensions), order="F")
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: a displacement must be finite, got NaN or infinite values")
    save_nifti(path, array, affine, space, _VECTOR_INTENT)


def read_displacement(path: str | os.PathLike[str], role: str = "displacement") -> DisplacementField:
    """Read a displacement field that ITK, ANTs, greedy or `write_displacement` wrote.

    Args:
        path: NIfTI of shape (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2), LPS millimetres.
        role: what it is to the caller; messages begin with it.

    Returns:
        The field in RAS millimetres on its grid.

    Raises:
        ValueError: the file cannot be read, has another shape, holds positions (SPM, NiftyReg), or is not finite.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "displacement.nii.gz"
        >>> write_displacement(path, torch.ones(3, 4, 5, 6), np.eye(4))
        >>> read_displacement(path).displacement[:, 0, 0, 0]
        tensor([1., 1., 1.])
    """
    image, affine, name = open_nifti(path, role)
    shape = tuple(image.shape)
    if len(shape) != 5 or shape[3] != 1 or shape[4] != (2 if shape[2] == 1 else 3):
        raise ValueError(
            f"{name}: a displacement field must have shape (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2), LPS "
            f"millimetres as ITK writes it, got {list(shape)}"
        )
    header: Any = image.header
    intent = header["intent_name"].item().decode("latin-1") if "intent_name" in header else ""
    if intent in _OTHER_FIELDS:
        raise ValueError(f"{name}: is a {_OTHER_FIELDS[intent]}; give an ITK displacement field in LPS millimetres")
    array = read_values(image, name)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: has NaN or infinite displacements")
    array = array.reshape(*shape[: shape[4]], shape[4])
    field = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    np.negative(field[:2], out=field[:2])
    return DisplacementField(torch.from_numpy(field), affine, world_code(image))


def read_transform(path: str | os.PathLike[str], role: str = "transform") -> np.ndarray | DisplacementField:
    """Read a transform from fixed to moving points, whichever kind the file holds.

    Args:
        path: .nii or .nii.gz for a displacement field; .mat, .tfm or .txt for an affine map.
        role: what it is to the caller ("initial transform"); messages begin with it.

    Returns:
        A `DisplacementField`, or a [d + 1, d + 1] float64 matrix as `read_affine` gives it.

    Raises:
        ValueError: as `read_displacement` and `read_affine`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "shift.tfm"
        >>> from deqreg.io import write_affine
        >>> write_affine(path, np.array([[1.0, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
        >>> read_transform(path)[0].tolist()
        [1.0, 0.0, 0.0, 5.0]
    """
    if Path(path).name.endswith((".nii", ".nii.gz")):
        return read_displacement(path, role)
    return read_affine(path, role)


def _check_field(displacement: torch.Tensor) -> None:
    if displacement.ndim not in (3, 4) or displacement.shape[0] != displacement.ndim - 1:
        raise ValueError(f"displacement must be [3, X, Y, Z] or [2, X, Y], got {list(displacement.shape)}")


def _matrices(field: torch.Tensor, fixed: np.ndarray, moving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _check_field(field)
    return grid_matrix(fixed, len(field)), grid_matrix(moving, len(field))


def _affine_in_field(
    field: torch.Tensor, on_field: np.ndarray, on_voxel: np.ndarray, shift: np.ndarray
) -> torch.Tensor:
    """Return `on_field @ field(x) + on_voxel @ x + shift`, in float64 a few planes at a time."""
    d, *extent = field.shape
    options: dict[str, Any] = {"dtype": torch.float64, "device": field.device}
    weights, steps = torch.as_tensor(on_field, **options), torch.as_tensor(on_voxel, **options)
    along = [torch.arange(n, **options).view([-1 if b == a else 1 for b in range(d)]) for a, n in enumerate(extent)]
    columns = [steps[:, a].view(d, *[1] * d) * index for a, index in enumerate(along)]
    origin = torch.as_tensor(shift, **options).view(d, *[1] * d)
    result = torch.empty_like(field)
    planes = max(1, 2**20 // max(1, field[0, 0].numel()))
    for start in range(0, extent[0], planes):
        slab = slice(start, start + planes)
        value = torch.tensordot(weights, field[:, slab].double(), dims=1)
        value += origin + columns[0][:, slab]
        for column in columns[1:]:
            value += column
        result[:, slab] = value
    return result
