"""Getting arrays out of NIfTI files, and files onto the disk whole or not at all."""

from __future__ import annotations

import gzip
import io
import logging
import os
import threading
import uuid
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

_NOT_AN_IMAGE = (ImageFileError, HeaderDataError, HeaderTypeError, WrapStructError)
_DAMAGED = (EOFError, zlib.error, OSError, OverflowError, MemoryError, ValueError)
_MEMBER = 2**22  # bytes that a thread compresses at a time
_LEVEL, _GZIP_WINDOW = 1, 31  # nibabel's level; zlib's code for a gzip header and the largest window
_SAMPLE, _LEAST_GAIN = 2**12, 0.25  # bytes of every sixteenth such piece; see `compressed`
# The header's codes for metres and micrometres: ITK converts them to millimetres and nibabel does not.
_MILLIMETRES = {1: 1e3, 3: 1e-3}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path`, and rename it to `path` when the block ends without an error.

    A reader of `path` sees the old file or the whole new one, never a part. The temporary name keeps the suffixes,
    because nibabel chooses the format by them.

    Args:
        path: the file to be written or replaced. Its folder must exist.

    Yields:
        The name to write to, in the same folder.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def compressed(content: bytes, *, repeats: bool = True) -> bytes:
    """Gzip bytes on as many threads as torch uses; the same bytes on any number of them.

    What would not shrink by a quarter, as a sample tells, is stored as it is: of a field, whose mantissas are noise,
    gzip takes off a fifth, in three times the time that storing it takes, and readers take three times as long.

    Args:
        content: what to compress.
        repeats: whether to look for words that come again. Floating-point numbers have none: without the search they
            take a third of the time and no more room.

    Returns:
        Gzip members one after the other, which readers take for one file.

    Example:
        >>> gzip.decompress(compressed(b"voxels"))
        b'voxels'
    """
    parts = [content[start : start + _MEMBER] for start in range(0, max(len(content), 1), _MEMBER)]
    strategy = zlib.Z_DEFAULT_STRATEGY if repeats else zlib.Z_RLE

    def member(part: bytes, level: int = _LEVEL) -> bytes:
        stream = zlib.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW, zlib.DEF_MEM_LEVEL, strategy)
        return stream.compress(part) + stream.flush()

    def smaller(part: bytes) -> bytes:
        sample = b"".join(part[start : start + _SAMPLE] for start in range(0, len(part), 16 * _SAMPLE))
        gains = len(member(sample)) < (1 - _LEAST_GAIN) * len(sample)
        return member(part, _LEVEL if gains else 0)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return b"".join(pool.map(smaller, parts))


def open_nifti(source: Any, role: str) -> tuple[nib.Nifti1Pair | nib.MGHImage, np.ndarray, str]:
    """Open an image without its values yet, and say in one line what is wrong when that fails.

    Args:
        source: the path of a NIfTI file (or FreeSurfer's .mgz), or a nibabel image of those types.
        role: what the image is to the caller, such as "fixed image"; error messages begin with it.

    Returns:
        The nibabel image; the [4, 4] affine from voxels to RAS millimetres; and the name that messages should use.

    Raises:
        ValueError: no such file, not an image, cut off or damaged, no usable affine.

    Example:
        >>> image = nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.diag([2.0, 2, 2, 1]))
        >>> _, affine, name = open_nifti(image, "fixed image")
        >>> float(affine[0, 0]), name
        (2.0, 'fixed image')
    """
    name, image = role, source
    if isinstance(source, str | os.PathLike):
        name = f"{role} {os.fspath(source)}"
        with _quiet_nibabel():
            image = _open(Path(source), name)
    elif isinstance(source, nib.Nifti1Pair | nib.MGHImage) and source.get_filename():
        name = f"{role} {source.get_filename()}"
    if not isinstance(image, nib.Nifti1Pair | nib.MGHImage):
        raise ValueError(f"{name}: must be a NIfTI volume (.nii or .nii.gz), got {type(image).__name__}")
    return image, _affine(image, name), name


def read_values(image: nib.Nifti1Pair | nib.MGHImage, name: str) -> np.ndarray:
    """Read all values of an open image.

    Args:
        image: from `open_nifti`.
        name: what messages call it.

    Returns:
        The scaled values, a fresh C-ordered float32 array of the shape on file.

    Raises:
        ValueError: cut off or damaged, colour or complex values.

    Example:
        >>> image = nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4))
        >>> array = read_values(image, "fixed image")
        >>> array.dtype, array.shape
        (dtype('float32'), (4, 5, 6))
    """
    stored: Any = image.dataobj
    dtype = np.dtype(stored.dtype)
    if dtype.names is not None:
        raise ValueError(f"{name}: has colour values ({', '.join(dtype.names)}); give one number a voxel")
    if dtype.kind == "c":
        raise ValueError(f"{name}: has complex values; give their magnitude")
    try:
        return np.array(np.asanyarray(stored, dtype=np.float32), order="C")
    except _DAMAGED as error:
        raise ValueError(f"{name}: cut off or damaged, its data cannot be read; copy or convert it again") from error


def world_code(image: nib.Nifti1Pair | nib.MGHImage) -> int:
    """Tell which world an image's affine leads to.

    Args:
        image: from `open_nifti`.

    Returns:
        The NIfTI code of the sform, else of the qform; 1, the scanner's, where there is neither.

    Example:
        >>> world_code(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)))
        2
    """
    header: Any = image.header
    codes = [int(header[key]) for key in ("sform_code", "qform_code")] if isinstance(image, nib.Nifti1Pair) else []
    return next((code for code in codes if code > 0), 1)


@contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel from logging a header's faults beside the one line that is raised for them."""
    # nibabel's own LoggingOutputSuppressor hands the lines to Python's handler of last resort, which prints them
    here = threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here  # volumes are read in several threads, each with a filter of its own

    nibabel_logger.addFilter(from_elsewhere)
    try:
        yield
    finally:
        nibabel_logger.removeFilter(from_elsewhere)


def _open(path: Path, name: str) -> Any:
    """Return the nibabel image at `path`, gzip checksums verified."""
    if path.is_dir():
        raise ValueError(f"{name}: is a folder; give one NIfTI file (dcm2niix makes one of a DICOM series)")
    if not path.exists():
        raise ValueError(f"{name}: no such file")
    try:
        if not path.name.endswith(".nii.gz"):
            return nib.load(path)
        packed = path.read_bytes()
        if packed.startswith(b"\x1f\x8b"):
            return _unpack(packed)
    except _NOT_AN_IMAGE as error:
        raise ValueError(f"{name}: not a NIfTI volume; give a .nii or .nii.gz file") from error
    except PermissionError as error:
        raise ValueError(f"{name}: no permission to read it") from error
    except _DAMAGED as error:
        raise ValueError(f"{name}: cut off or damaged; copy or convert it again") from error
    raise ValueError(f"{name}: not a gzip file, though its name says so; give a .nii or .nii.gz volume")


def _unpack(packed: bytes) -> nib.Nifti1Image:
    # nibabel stops at the last voxel and so never meets gzip's checksum: a damaged file would load as noise. A stream,
    # for gzip.decompress copies all that is left with every member
    content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read()
    nifti2 = int.from_bytes(content[:4], "little") == 540 or int.from_bytes(content[:4], "big") == 540
    return (nib.Nifti2Image if nifti2 else nib.Nifti1Image).from_bytes(content)


def _affine(image: Any, name: str) -> np.ndarray:
    """Return voxel -> RAS mm as nibabel chooses it, in millimetres whatever unit the header counts in."""
    affine = np.array(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise ValueError(f"{name}: its affine has NaN or infinite entries; correct the header's sform")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # relative to the volume of a box with these edges, so that micrometre spacings pass
    if abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(spacing):
        raise ValueError(f"{name}: singular affine, its voxel axes do not span space; correct the header's sform")
    if isinstance(image, nib.Nifti1Pair):
        _warn_where_itk_would_differ(image, affine, spacing, name)
        affine[:3] *= _MILLIMETRES.get(int(image.header["xyzt_units"]) & 7, 1.0)
    return affine


def _warn_where_itk_would_differ(image: nib.Nifti1Pair, affine: np.ndarray, spacing: np.ndarray, name: str) -> None:
    qform_code, sform_code = int(image.header["qform_code"]), int(image.header["sform_code"])
    if qform_code == 0 and sform_code == 0:
        warnings.warn(
            f"{name}: the header has no orientation (qform and sform codes are 0); read as nibabel does, centred "
            "and with x falling along the first axis; ITK's tools read it otherwise",
            stacklevel=2,
        )
    elif qform_code > 0 and sform_code > 0:
        extent = (*image.shape, 1, 1)[:3]
        corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]) * (*extent, 1)
        apart = np.linalg.norm(corners @ (_qform(image) - affine).T, axis=1).max()
        if not apart <= 0.05 * spacing.min():
            how = f"disagree by up to {apart:.3g}" if np.isfinite(apart) else "disagree, for the qform is no rotation"
            warnings.warn(
                f"{name}: its qform and sform {how}; the sform is used, and ITK's tools may use the qform", stacklevel=2
            )


def _qform(image: nib.Nifti1Pair) -> np.ndarray:
    try:
        return image.get_qform()
    except (ValueError, HeaderDataError):  # a quaternion longer than 1, or spacings that are not positive
        return np.full((4, 4), np.nan)
