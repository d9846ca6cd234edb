"""Scalar volumes: reading them with every way they can be wrong, and writing them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from deqreg.io.files import compressed, open_nifti, read_values, replacing, world_code
from deqreg.spatial import Grid

_SMALLEST_EXTENT = 4  # voxels; below this neither a pyramid nor a derivative means anything
_LARGEST_LABEL = 2**24  # float32 holds every integer up to here


def grid_matrix(affine: np.ndarray, dimensions: int) -> np.ndarray:
    """Reduce a NIfTI affine to the dimensions of its image.

    A 2-D image has a [4, 4] affine too. It is a map of the plane only where the slice lies in the world's x-y plane.

    Args:
        affine: [4, 4], voxels to RAS millimetres; or [dimensions + 1, dimensions + 1], which is returned as it is.
        dimensions: 2 or 3.

    Returns:
        [dimensions + 1, dimensions + 1] float64, homogeneous, voxels to RAS millimetres.

    Raises:
        ValueError: another shape; a 2-D slice that is not in the x-y plane.

    Example:
        >>> affine = np.diag([2.0, 3.0, 4.0, 1.0])
        >>> grid_matrix(affine, 2).tolist()
        [[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]]
    """
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape == (dimensions + 1, dimensions + 1):
        return affine
    if affine.shape != (4, 4) or dimensions != 2:
        raise ValueError(f"affine must be [4, 4] or [{dimensions + 1}, {dimensions + 1}], got {list(affine.shape)}")
    if np.abs(affine[2, :2]).max() > 1e-3 * np.abs(affine[:2, :2]).max():
        raise ValueError(f"a 2-D image must lie in the world's x-y plane, got voxel axes {affine[:3, :2].T.tolist()}")
    return affine[np.ix_([0, 1, 3], [0, 1, 3])]


@dataclass(frozen=True, eq=False)
class Volume:
    """An image and where it lies.

    Attributes:
        data: [X, Y, Z] or [X, Y] float32, in the order of the file: no axis is flipped.
        affine: [4, 4] float64, voxels to RAS millimetres; a 2-D image lies in the x-y plane.
        dtype: the type the voxels had on file, for writing labels back as they came.
        space: the NIfTI code of the world: 1 scanner, 2 aligned to another image, 3 Talairach, 4 MNI152.
        name: what messages call it.

    Raises:
        ValueError: data that is not [X, Y, Z] or [X, Y] float32, or an affine that does not fit it.

    Example:
        >>> volume = Volume(torch.zeros(4, 5, 6), np.diag([2.0, 2.0, 3.0, 1.0]))
        >>> volume.dimensions, volume.spacing.tolist()
        (3, [2.0, 2.0, 3.0])
    """

    data: torch.Tensor
    affine: np.ndarray
    dtype: np.dtype = field(default=np.dtype(np.float32))
    space: int = 1
    name: str = "volume"

    def __post_init__(self) -> None:
        """Check the shapes and the type."""
        if self.data.ndim not in (2, 3) or self.data.dtype != torch.float32:
            raise ValueError(
                f"{self.name}: data must be [X, Y, Z] or [X, Y] float32, got {list(self.data.shape)} {self.data.dtype}"
            )
        if np.shape(self.affine) != (4, 4):
            raise ValueError(f"{self.name}: affine must be [4, 4], got {list(np.shape(self.affine))}")
        if not np.isfinite(self.affine).all():
            raise ValueError(f"{self.name}: affine must be of finite numbers, got NaN or infinite entries")
        try:
            Grid.of(self.data.shape, self.matrix)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return self.data.ndim

    @property
    def matrix(self) -> np.ndarray:
        """[d + 1, d + 1] float64: voxels to RAS millimetres in the image's own dimensions."""
        return grid_matrix(self.affine, self.data.ndim)

    @property
    def spacing(self) -> np.ndarray:
        """[d] float64: the distance between neighbouring voxels along each axis, in millimetres."""
        return np.linalg.norm(self.matrix[:-1, :-1], axis=0)


Source = str | os.PathLike[str] | nib.Nifti1Pair | nib.MGHImage | Volume


def read_image(source: Source, role: str = "image") -> Volume:
    """Read an image to be registered.

    Args:
        source: a path (.nii, .nii.gz), a nibabel image or a `Volume`.
        role: what it is to the caller ("fixed image"); messages begin with it and the path.

    Returns:
        The volume, with finite values that are not all the same.

    Raises:
        ValueError: the source cannot be read, is a series or a vector image, is smaller than 4 voxels along an axis,
            has NaN or infinite voxels, or is constant.

    Example:
        >>> ramp = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
        >>> volume = read_image(nib.Nifti1Image(ramp, np.eye(4)), "fixed image")
        >>> volume.data.dtype, volume.dtype
        (torch.float32, dtype('int16'))
    """
    volume = read_volume(source, role)
    low, high = volume.data.aminmax()
    if low == high:
        raise ValueError(f"{volume.name}: constant, every voxel is {float(low):g}; give an image with contrast")
    return volume


def read_volume(source: Source, role: str = "volume") -> Volume:
    """Read a volume that may be constant, such as a mask or a segmentation.

    Args:
        source: a path (.nii, .nii.gz), a nibabel image or a `Volume`.
        role: what it is to the caller ("moving image"); messages begin with it and the path.

    Returns:
        The volume, with finite values.

    Raises:
        ValueError: the source cannot be read, is a series or a vector image, is smaller than 4 voxels along an axis, or
            has NaN or infinite voxels.

    Example:
        >>> read_volume(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4))).data.sum()
        tensor(120.)
    """
    volume = source if isinstance(source, Volume) else _from_nifti(source, role)
    _check_extents(volume)
    # what is not finite shows in the extremes, which are found in a tenth of the time that looking at each voxel takes
    if not all(bool(value.isfinite()) for value in volume.data.aminmax()):
        bad = volume.data.numel() - int(torch.isfinite(volume.data).sum())
        raise ValueError(
            f"{volume.name}: {bad} of {volume.data.numel()} voxels are NaN or infinite; "
            "replace them first, for example by 0"
        )
    return volume


def read_grid(source: Source, role: str = "reference image") -> Volume:
    """Read where an image lies, whatever its values are.

    Args:
        source: a path (.nii, .nii.gz), a nibabel image or a `Volume`.
        role: what it is to the caller ("reference image"); messages begin with it and the path.

    Returns:
        A volume on that grid, whose values mean nothing: they are not read.

    Raises:
        ValueError: the source cannot be read, is a series or a vector image, or is smaller than 4 voxels along an axis.

    Example:
        >>> grid = read_grid(nib.Nifti1Image(np.full((4, 5, 6), np.nan), np.diag([2.0, 2.0, 3.0, 1.0])))
        >>> grid.data.shape, grid.spacing.tolist()
        (torch.Size([4, 5, 6]), [2.0, 2.0, 3.0])
    """
    volume = source if isinstance(source, Volume) else _from_nifti(source, role, values=False)
    _check_extents(volume)
    return volume


def read_mask(source: Source, image: Volume, role: str = "mask") -> Volume:
    """Read a mask that belongs to an image.

    Args:
        source: a path, a nibabel image or a `Volume`; voxels above zero are inside.
        image: the image it belongs to.
        role: what it is to the caller ("fixed mask").

    Returns:
        A volume on the image's grid with 1 inside and 0 outside.

    Raises:
        ValueError: as `read_image` (a constant mask is accepted), another grid than the image's, or nothing above zero
            off the border of the grid, where no derivative can be taken.

    Example:
        >>> image = Volume(torch.rand(4, 5, 6), np.eye(4))
        >>> inside = np.ones((4, 5, 6), np.uint8)
        >>> read_mask(nib.Nifti1Image(inside, np.eye(4)), image).data.sum()
        tensor(120.)
    """
    volume = read_volume(source, role)
    check_same_grid(volume, image)
    inside = volume.data > 0
    if not bool(inside.any()):
        raise ValueError(f"{volume.name}: empty, no voxel is above zero; give a mask of the region that counts")
    if not bool(inside[(slice(1, -1),) * inside.ndim].any()):
        raise ValueError(
            f"{volume.name}: has no voxel above zero off the border of its grid; give a mask of the region that counts"
        )
    return Volume(inside.float(), volume.affine, volume.dtype, volume.space, volume.name)


def read_labels(source: Source, image: Volume, role: str = "labels") -> Volume:
    """Read a segmentation that belongs to an image.

    Args:
        source: a path, a nibabel image or a `Volume`; integers, 0 is background.
        image: the image it belongs to.
        role: what it is to the caller ("moving labels").

    Returns:
        A volume on the image's grid with integers as float32, exact below 2^24.

    Raises:
        ValueError: as `read_mask`, values that are not integers, or labels of 2^24 and more.

    Example:
        >>> image = Volume(torch.rand(4, 5, 6), np.eye(4))
        >>> parcels = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
        >>> read_labels(nib.Nifti1Image(parcels, np.eye(4)), image).data.max()
        tensor(119.)
    """
    volume = read_volume(source, role)
    check_same_grid(volume, image)
    fractions = volume.data != volume.data.round()
    if bool(fractions.any()):
        value = float(volume.data[fractions][0])
        raise ValueError(f"{volume.name}: labels must be integers, got {value:g}; resample with nearest neighbours")
    check_exact(volume)
    if not bool((volume.data > 0).any()):
        raise ValueError(f"{volume.name}: empty, no label is above zero (0 is background)")
    return volume


def check_exact(labels: Volume) -> None:
    """Raise where labels may not be what they were on file: float32 rounds integers from 2^24 on.

    Args:
        labels: integers.

    Raises:
        ValueError: one of them is too large.

    Example:
        >>> check_exact(Volume(torch.full((4, 5, 6), 16777215.0), np.eye(4)))
    """
    high = float(labels.data.abs().max())
    if high >= _LARGEST_LABEL:
        raise ValueError(f"{labels.name}: labels must be below 2^24, got {high:.0f}; renumber them")


def check_same_grid(volume: Volume, image: Volume) -> None:
    """Raise unless two volumes have the same shape and, to a thousandth of a voxel or of a millimetre, the same affine.

    Args:
        volume: the mask or labels.
        image: the image they belong to.

    Raises:
        ValueError: naming both, and what differs.

    Example:
        >>> image = Volume(torch.rand(4, 5, 6), np.eye(4))
        >>> check_same_grid(Volume(torch.zeros(4, 5, 6), np.eye(4)), image)
    """
    if volume.data.shape != image.data.shape:
        raise ValueError(
            f"{volume.name}: must have the grid of {image.name}, {list(image.data.shape)} voxels, "
            f"got {list(volume.data.shape)}"
        )
    difference = np.abs(volume.affine - image.affine)
    if difference.max() > 1e-3 * min(1.0, image.spacing.min()):
        row, column = np.unravel_index(difference.argmax(), (4, 4))
        raise ValueError(
            f"{volume.name}: must have the affine of {image.name}, but they differ by "
            f"{difference.max():.3g} in row {row + 1}, column {column + 1}"
        )


def write_volume(
    path: str | os.PathLike[str],
    data: torch.Tensor | np.ndarray,
    affine: np.ndarray,
    *,
    dtype: np.dtype | type = np.float32,
    space: int = 1,
) -> None:
    """Write a volume as NIfTI, whole or not at all.

    Args:
        path: ending in .nii or .nii.gz; its folder must exist.
        data: [X, Y, Z] or [X, Y], on any device.
        affine: [4, 4], voxels to RAS millimetres.
        dtype: the type on file. Values that it cannot hold exactly are written as int32 where it is an integer type.
        space: the NIfTI code of the world, for qform and sform.

    Raises:
        ValueError: another suffix or shape; values that are not integers for an integer type.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels.nii.gz"
        >>> write_volume(path, torch.ones(4, 5, 6), np.eye(4), dtype=np.uint8)
        >>> nib.load(path).get_data_dtype()
        dtype('uint8')
    """
    array = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else np.asarray(data)
    if array.ndim not in (2, 3):
        raise ValueError(f"data must be [X, Y, Z] or [X, Y], got {list(array.shape)}")
    save_nifti(path, _as_dtype(array, np.dtype(dtype)), affine, space)


def save_nifti(
    path: str | os.PathLike[str], array: np.ndarray, affine: np.ndarray, space: int, intent: int = 0
) -> None:
    """Write an array as it is to NIfTI with qform, sform and millimetres set, whole or not at all.

    A sheared affine has no qform: it is written as the sform alone, so that a reader that needs the qform complains
    instead of taking the nearest rotation.

    Args:
        path: ending in .nii or .nii.gz; its folder must exist.
        array: of the shape and type it shall have on file.
        affine: [4, 4], voxels to RAS millimetres.
        space: the NIfTI code of the world, at least 1.
        intent: the NIfTI intent code; 1007 says that the fifth axis is a vector.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ones.nii"
        >>> save_nifti(path, np.ones((4, 5, 6), np.uint8), np.eye(4), space=4)
        >>> int(nib.load(path).header["sform_code"])
        4
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: a NIfTI file must end in .nii or .nii.gz")
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["intent_code"] = intent
    image.set_sform(affine, space)
    image.set_qform(affine, space, strip_shears=True)
    # float32 quaternions reproduce a rotation to about 1e-6; a shear that matters is far above 1e-4 of the spacing
    if np.abs(image.get_qform() - affine)[:3, :3].max() > 1e-4 * np.linalg.norm(affine[:3, :3], axis=0).min():
        image.set_qform(affine, 0, strip_shears=True)
    with replacing(path) as temporary:
        if path.suffix == ".gz":
            temporary.write_bytes(compressed(image.to_bytes(), repeats=array.dtype.kind != "f"))
        else:
            nib.save(image, temporary)


def _check_extents(volume: Volume) -> None:
    if min(volume.data.shape) < _SMALLEST_EXTENT:
        raise ValueError(
            f"{volume.name}: must have at least {_SMALLEST_EXTENT} voxels along each axis, "
            f"got {list(volume.data.shape)}"
        )


def _from_nifti(source: Any, role: str, *, values: bool = True) -> Volume:
    """Read a scalar volume; without its values, zeros that take no memory stand for them."""
    image, affine, name = open_nifti(source, role)
    shape = tuple(image.shape)
    # before the values are read: a series may be many times what is expected
    if len(shape) == 5 and shape[3] == 1 and shape[4] > 1:
        raise ValueError(f"{name}: is a vector field of shape {list(shape)}; give a scalar volume")
    if any(extent > 1 for extent in shape[3:]):
        raise ValueError(f"{name}: is a series of shape {list(shape)}; give one 3-D volume (X, Y, Z)")
    if len(shape) < 2:
        raise ValueError(f"{name}: must have shape (X, Y, Z) or (X, Y), got {list(shape)}")
    extents = shape[:2] if shape[2:3] == (1,) else shape[:3]
    data = torch.from_numpy(read_values(image, name).reshape(extents)) if values else torch.zeros(()).expand(extents)
    return Volume(data, affine, np.dtype(image.get_data_dtype()).newbyteorder("="), world_code(image), name)


def _as_dtype(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind not in "iub":
        return array.astype(np.float64 if dtype == np.float64 else np.float32, copy=False)
    whole = np.rint(array)
    if not np.array_equal(whole, array):
        raise ValueError(f"values must be integers to be written as {dtype}, got {array[whole != array][0]:g}")
    narrow = dtype.kind != "b" and dtype.itemsize <= 4 and bool((whole.astype(dtype) == whole).all())
    return whole.astype(dtype if narrow else np.int32)
