"""Transforms in the forms of tools that do not read ITK's files: elastix, greedy's matrices, Learn2Reg's voxels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from deqreg.io.affines import lps_flip
from deqreg.io.files import replacing
from deqreg.io.transforms import DisplacementField, voxel_map
from deqreg.io.volumes import grid_matrix, save_nifti


def write_elastix(
    path: str | os.PathLike[str], transform: np.ndarray | Path, shape: Sequence[int], affine: np.ndarray
) -> None:
    """Write a parameter file for transformix, which resamples a moving image onto the fixed grid.

    Args:
        path: ending in .txt; its folder must exist.
        transform: [d + 1, d + 1], RAS millimetres of the fixed image to those of the moving image; or the path of a
            displacement on the grid, which the file names and transformix reads.
        shape: voxels of the fixed grid.
        affine: [4, 4], voxels of the fixed grid to RAS millimetres.

    Raises:
        ValueError: another suffix, a matrix of another shape, or a grid whose axes are not at right angles.
        OSError: the file cannot be written.

    The format is that of elastix 5's manual, section 2.6 and chapter 4.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "transform.txt"
        >>> write_elastix(path, np.eye(4), (4, 5, 6), np.eye(4))
        >>> path.read_text().splitlines()[0]
        '(Transform "AffineTransform")'
    """
    path, d = Path(path), len(shape)
    if path.suffix != ".txt":
        raise ValueError(f"{path}: a parameter file of elastix must end in .txt")
    if isinstance(transform, np.ndarray):
        if transform.shape != (d + 1, d + 1):
            raise ValueError(f"transform must be [{d + 1}, {d + 1}] for this grid, got {list(transform.shape)}")
        lps = lps_flip(d) @ transform @ lps_flip(d)
        parameters = [*lps[:-1, :-1].ravel(), *lps[:-1, -1]]
        own = [
            '(Transform "AffineTransform")',
            f"(NumberOfParameters {len(parameters)})",
            f"(TransformParameters {_numbers(parameters)})",
            f"(CenterOfRotationPoint {_numbers([0.0] * d)})",
        ]
    else:
        own = [
            '(Transform "DeformationFieldTransform")',
            "(NumberOfParameters 0)",
            f'(DeformationFieldFileName "{transform.absolute()}")',
            "(DeformationFieldInterpolationOrder 1)",
        ]
    lines = [
        *own,
        '(InitialTransformParameterFileName "NoInitialTransform")',
        '(HowToCombineTransforms "Compose")',
        f"(FixedImageDimension {d})",
        f"(MovingImageDimension {d})",
        '(FixedInternalImagePixelType "float")',
        '(MovingInternalImagePixelType "float")',
        *_elastix_grid(shape, affine),
        '(UseDirectionCosines "true")',
        '(Resampler "DefaultResampler")',
        '(ResampleInterpolator "FinalLinearInterpolator")',
        "(DefaultPixelValue 0)",
        '(ResultImageFormat "nii.gz")',
        '(ResultImagePixelType "float")',
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_greedy(path: str | os.PathLike[str], matrix: np.ndarray) -> None:
    """Write an affine map as greedy and c3d_affine_tool read it: the matrix, RAS millimetres, fixed to moving.

    Args:
        path: the text file; its folder must exist.
        matrix: [d + 1, d + 1], RAS millimetres of the fixed image to those of the moving image.

    Raises:
        ValueError: another shape.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "affine.mat"
        >>> write_greedy(path, np.diag([1.0, 2.0, 1.0, 1.0]))
        >>> path.read_text().splitlines()[1]
        '0.0 2.0 0.0 0.0'
    """
    if np.shape(matrix) not in ((3, 3), (4, 4)):
        raise ValueError(f"matrix must be [3, 3] or [4, 4], got {list(np.shape(matrix))}")
    with replacing(Path(path)) as temporary:
        temporary.write_text("".join(f"{_numbers(row)}\n" for row in matrix), encoding="utf-8")


def write_voxels(path: str | os.PathLike[str], field: DisplacementField, moving_affine: np.ndarray) -> None:
    """Write a displacement as Learn2Reg has it: (X, Y, Z, 3) voxels, sampled as `moving(x + u(x))` by index.

    Args:
        path: ending in .nii or .nii.gz; its folder must exist.
        field: the displacement and its grid.
        moving_affine: [4, 4], voxels of the moving image to RAS millimetres.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written.

    The convention is that of the Learn2Reg challenge (Hering et al., IEEE Transactions on Medical Imaging 42 (2023),
    697), which VoxelMorph and MONAI share.

    Example:
        >>> import tempfile, nibabel
        >>> path = Path(tempfile.mkdtemp()) / "disp.nii.gz"
        >>> grid = np.diag([2.0, 2.0, 2.0, 1.0])
        >>> write_voxels(path, DisplacementField(torch.ones(3, 4, 5, 6), grid), grid)
        >>> nibabel.load(path).get_fdata()[0, 0, 0].tolist()
        [0.5, 0.5, 0.5]
    """
    d = len(field.displacement)
    u = voxel_map(field.displacement, field.affine, moving_affine)
    for axis, size in enumerate(u.shape[1:]):
        u[axis] -= torch.arange(size, dtype=u.dtype).view(-1, *[1] * (d - 1 - axis))
    save_nifti(path, np.ascontiguousarray(u.movedim(0, -1).numpy()), field.affine, field.space)


def _elastix_grid(shape: Sequence[int], affine: np.ndarray) -> list[str]:
    d = len(shape)
    lps = lps_flip(d) @ grid_matrix(affine, d)
    spacing = np.linalg.norm(lps[:-1, :-1], axis=0)
    direction = lps[:-1, :-1] / spacing
    if np.abs(direction.T @ direction - np.eye(d)).max() > 1e-4:
        raise ValueError(f"a grid for elastix must have axes at right angles, got directions {direction.T.tolist()}")
    return [
        f"(Size {' '.join(map(str, shape))})",
        f"(Index {' '.join(['0'] * d)})",
        f"(Spacing {_numbers(spacing)})",
        f"(Origin {_numbers(lps[:-1, -1])})",
        f"(Direction {_numbers(direction.T.ravel())})",  # axis by axis
    ]


def _numbers(values: Iterable[float]) -> str:
    return " ".join(repr(float(value)) for value in values)
