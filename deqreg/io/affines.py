"""Affine and rigid transforms in the files that ITK, ANTs and SimpleITK write: .mat, .tfm and .txt.

Files hold LPS millimetres; a matrix here takes RAS millimetres of the fixed image to those of the moving image.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import numpy as np

from deqreg.io.files import replacing


def read_affine(path: str | os.PathLike[str], role: str = "affine") -> np.ndarray:
    """Read an affine or rigid transform that ITK, ANTs or SimpleITK wrote.

    ITK's parameters are about a centre: `y = M (p - c) + c + t`, in LPS millimetres.

    Args:
        path: .mat (ITK's binary form, such as ANTs' 0GenericAffine.mat), .tfm or .txt (ITK's text form). The text form
            may hold a composite of such transforms, of which ITK applies the last first.
        role: what it is to the caller; messages begin with it.

    Returns:
        [d + 1, d + 1] float64, homogeneous: RAS millimetres of the fixed image to those of the moving image.

    Raises:
        ValueError: no such file, another format (FSL's .mat, HDF5), a kind of transform that is not linear, a singular
            matrix.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "shift.txt"
        >>> write_affine(path, np.diag([1.0, 2.0, 3.0, 1.0]))
        >>> read_affine(path).diagonal().tolist()
        [1.0, 2.0, 3.0, 1.0]
    """
    path = Path(path)
    name = f"{role} {path}"
    if not path.is_file():
        raise ValueError(f"{name}: {'is a folder' if path.is_dir() else 'no such file'}")
    if path.suffix not in _READERS:
        raise ValueError(f"{name}: must be an ITK transform in .mat, .tfm or .txt, or a displacement field in .nii.gz")
    records = _READERS[path.suffix](path.read_bytes(), name)
    matrices = [_homogeneous(kind, parameters, fixed, name) for kind, parameters, fixed in records]
    if len({len(matrix) for matrix in matrices}) != 1:
        kinds = ", ".join(kind for kind, _, _ in records)
        raise ValueError(f"{name}: must hold transforms of one dimension, got {kinds or 'none'}")
    total = reduce(np.matmul, matrices)
    if not np.isfinite(total).all() or abs(np.linalg.det(total)) < 1e-9:
        raise ValueError(f"{name}: its matrix is singular or not finite: {total[:-1].tolist()}")
    flip = lps_flip(len(total) - 1)
    return flip @ total @ flip


def write_affine(path: str | os.PathLike[str], matrix: np.ndarray) -> None:
    """Write an affine map as an ITK text transform, about the centre 0.

    Args:
        path: ending in .tfm or .txt; its folder must exist.
        matrix: [d + 1, d + 1], RAS millimetres of the fixed image to those of the moving image.

    Raises:
        ValueError: another suffix or shape.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "identity.tfm"
        >>> write_affine(path, np.eye(4))
        >>> path.read_text().splitlines()[2]
        'Transform: AffineTransform_double_3_3'
    """
    path = Path(path)
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape not in ((3, 3), (4, 4)):
        raise ValueError(f"matrix must be [3, 3] or [4, 4], got {list(matrix.shape)}")
    if path.suffix not in (".tfm", ".txt"):
        raise ValueError(f"{path}: an ITK text transform must end in .tfm or .txt")
    d = len(matrix) - 1
    lps = lps_flip(d) @ matrix @ lps_flip(d)
    parameters = " ".join(repr(float(value)) for value in (*lps[:-1, :-1].ravel(), *lps[:-1, -1]))
    with replacing(path) as temporary:
        temporary.write_text(
            "#Insight Transform File V1.0\n#Transform 0\n"
            f"Transform: AffineTransform_double_{d}_{d}\n"
            f"Parameters: {parameters}\nFixedParameters: {' '.join(['0'] * d)}\n"
        )


def lps_flip(dimensions: int) -> np.ndarray:
    """Give the matrix that takes RAS millimetres to LPS and back: the first two axes change sign.

    Args:
        dimensions: d, 2 or 3.

    Returns:
        [d + 1, d + 1] float64, homogeneous.

    Example:
        >>> lps_flip(3).diagonal().tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """
    return np.diag([-1.0, -1.0] + [1.0] * (dimensions - 1))


_Record = tuple[str, np.ndarray, np.ndarray]  # kind such as AffineTransform_double_3_3, parameters, fixed parameters


def _read_text(content: bytes, name: str) -> list[_Record]:
    """Read ITK's text form: blocks of Transform, Parameters and FixedParameters."""
    text = content.decode("latin-1")
    if not text.startswith("#Insight Transform File"):
        raise ValueError(f"{name}: not an ITK transform; its first line must be '#Insight Transform File V1.0'")
    blocks = re.split(r"^Transform:", text.replace("\r\n", "\n"), flags=re.MULTILINE)[1:]
    composite = bool(blocks) and blocks[0].strip().startswith("CompositeTransform")
    if len(blocks) > 1 and not composite:
        raise ValueError(f"{name}: holds {len(blocks)} transforms with no order between them; give one, or a composite")
    records: list[_Record] = []
    for block in blocks[composite:]:  # the composite is only a heading: its parts follow as blocks of their own
        kind = block.split("\n", 1)[0].strip()
        numbers = {}
        for key in ("Parameters", "FixedParameters"):
            found = re.search(rf"^{key}:([^\n]*)$", block, flags=re.MULTILINE)
            words = found[1].strip() if found else ""
            try:
                numbers[key] = np.array([float(word) for word in words.split()])
            except ValueError as error:
                raise ValueError(f"{name}: the {key} of {kind} must be numbers, got {words[:60]!r}") from error
        records.append((kind, numbers["Parameters"], numbers["FixedParameters"]))
    return records


def _read_mat(content: bytes, name: str) -> list[_Record]:
    """Read ITK's binary form, a MATLAB level 4 file: a named column of parameters, then a column named "fixed"."""
    columns: list[tuple[str, np.ndarray]] = []
    position = 0
    while position < len(content):
        order = "<" if int.from_bytes(content[position : position + 4], "little") < 5000 else ">"
        header = content[position : position + 20].ljust(20, b"\0")  # a name of length 0 is refused below
        kind, rows, count, imaginary, length = struct.unpack(f"{order}5i", header)
        start = position + 20 + length
        # type MOPT: machine M, always 0 for O and T; of the precisions P, ITK writes double (0) and float (1)
        if kind not in (0, 10, 1000, 1010) or imaginary or min(rows, count) < 0 or not 1 < length < 256:
            raise ValueError(
                f"{name}: not an ITK .mat (MATLAB level 4), as ANTs' 0GenericAffine.mat is; "
                "FSL's and greedy's matrices are other formats: convert them with c3d_affine_tool -oitk"
            )
        dtype = np.dtype(f"{order}f8" if kind % 1000 == 0 else f"{order}f4")
        position = start + rows * count * dtype.itemsize
        if position > len(content):
            raise ValueError(f"{name}: cut off or damaged; copy it again")
        label = content[start - length : start].rstrip(b"\0").decode("latin-1")
        columns.append((label, np.frombuffer(content[start:position], dtype).astype(np.float64)))
    labels = [label for label, _ in columns]
    if len(columns) != 2 or labels[1] != "fixed" or labels[0].startswith("CompositeTransform"):
        held = ", ".join(labels) or "nothing"
        raise ValueError(f"{name}: must hold one transform and its fixed parameters, got {held}")
    return [(labels[0], columns[0][1], columns[1][1])]


_READERS = {".mat": _read_mat, ".tfm": _read_text, ".txt": _read_text}


def _rotation(axis: int, angle: float) -> np.ndarray:
    """Rotate by `angle` about a world axis, right-handed."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def _euler(p: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    x, y, z = (_rotation(axis, p[axis]) for axis in range(3))
    zyx = len(fixed) > 3 and fixed[3] != 0  # ITK's flag ComputeZYX; its default order is Z X Y
    return z @ y @ x if zyx else z @ x @ y


def _versor(p: np.ndarray) -> np.ndarray:
    """Turn the vector part of a unit quaternion, whose scalar part is not negative, into a rotation."""
    x, y, z = p[:3]
    w = np.sqrt(max(0.0, 1.0 - x * x - y * y - z * z))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


_Parts = tuple[np.ndarray, np.ndarray]
# kind and dimension -> number of parameters, and (parameters, fixed parameters) -> (linear part, translation)
_KINDS: dict[tuple[str, int], tuple[int, Callable[[np.ndarray, np.ndarray], _Parts]]] = {
    ("AffineTransform", 2): (6, lambda p, _: (p[:4].reshape(2, 2), p[4:])),
    ("AffineTransform", 3): (12, lambda p, _: (p[:9].reshape(3, 3), p[9:])),
    ("Euler2DTransform", 2): (3, lambda p, _: (_rotation(2, p[0])[:2, :2], p[1:])),
    ("Euler3DTransform", 3): (6, lambda p, fixed: (_euler(p, fixed), p[3:])),
    ("VersorRigid3DTransform", 3): (6, lambda p, _: (_versor(p), p[3:])),
    ("Similarity2DTransform", 2): (4, lambda p, _: (p[0] * _rotation(2, p[1])[:2, :2], p[2:])),
    ("Similarity3DTransform", 3): (7, lambda p, _: (p[6] * _versor(p), p[3:6])),
    ("TranslationTransform", 2): (2, lambda p, _: (np.eye(2), p)),
    ("TranslationTransform", 3): (3, lambda p, _: (np.eye(3), p)),
    ("IdentityTransform", 2): (0, lambda p, _: (np.eye(2), np.zeros(2))),
    ("IdentityTransform", 3): (0, lambda p, _: (np.eye(3), np.zeros(3))),
}
_SAME = {"MatrixOffsetTransformBase": "AffineTransform", "Rigid2DTransform": "Euler2DTransform"}


def _homogeneous(kind: str, parameters: np.ndarray, fixed: np.ndarray, name: str) -> np.ndarray:
    """Return the [d + 1, d + 1] LPS matrix of one ITK transform."""
    found = re.fullmatch(r"(\w+)_(?:double|float)_([23])_\2", kind)
    base, d = (_SAME.get(found[1], found[1]), int(found[2])) if found else (kind, 0)
    if (base, d) not in _KINDS:
        known = ", ".join(sorted({known for known, _ in _KINDS} | set(_SAME)))
        raise ValueError(f"{name}: cannot use a {kind or 'nameless transform'}; it must be one of {known}")
    count, parts = _KINDS[base, d]
    # Euler3DTransform has a flag after its centre; the translation and the identity have no centre
    if len(parameters) != count or len(fixed) not in (0, d, d + 1):
        raise ValueError(
            f"{name}: a {kind} has {count} parameters and a centre of {d}, got {len(parameters)} and {len(fixed)}"
        )
    centre = fixed[:d] if len(fixed) else np.zeros(d)
    linear, translation = parts(parameters, fixed)
    matrix = np.eye(d + 1)
    matrix[:d, :d] = linear
    matrix[:d, d] = translation + centre - linear @ centre
    return matrix
