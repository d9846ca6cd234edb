"""How good a registration is: overlap and distance of labels, landmark error, folding and smoothness of the field.

A displacement is in RAS millimetres, [d, *S] on the fixed grid: `p_moving = p_fixed + d(p_fixed)`. Labels are on the
fixed grid too. Every function takes NumPy arrays or tensors on any device and works on the CPU in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

import numpy as np
import torch

from deqreg import ops
from deqreg.io.volumes import grid_matrix
from deqreg.spatial import sample

Array = torch.Tensor | np.ndarray

# Determinants are cut off here before their logarithm, so that folded voxels count as far from 1 and not as infinite.
_LEAST_DETERMINANT, _LARGEST_DETERMINANT = 1e-9, 1e9
_SLAB = 2**19  # voxels treated at a time: in float64 a field of them is 12 MB


def dice(fixed_labels: Array, warped_labels: Array) -> dict[int, float]:
    """Measure the overlap of each label: `2 |F and W| / (|F| + |W|)`.

    Args:
        fixed_labels: [*S] integers (of any type); 0 and below are background.
        warped_labels: [*S], the moving labels on the fixed grid.

    Returns:
        Label -> Dice in [0, 1], for the labels that are in both. A label that one of the two lacks is left out, so
        check the number of labels where the warp may have lost one; `mean_over_labels` gives the usual figure.

    Raises:
        ValueError: different shapes, or labels that are not integers below 2^24.

    From Dice, Ecology 26 (1945), 297.

    Example:
        >>> fixed, warped = np.array([[0, 1, 1, 2]]), np.array([[1, 1, 0, 2]])
        >>> dice(fixed, warped)
        {1: 0.5, 2: 1.0}
    """
    fixed, warped = _label_pair(fixed_labels, warped_labels)
    length = max(fixed.max(initial=0), warped.max(initial=0)) + 1
    # three passes over the voxels, whatever the number of labels
    in_fixed, in_warped, in_both = (
        np.bincount(labels, minlength=length) for labels in (fixed.ravel(), warped.ravel(), fixed[fixed == warped])
    )
    kept = np.flatnonzero((in_fixed > 0) & (in_warped > 0))
    return {int(i): float(2.0 * in_both[i] / (in_fixed[i] + in_warped[i])) for i in kept if i > 0}


def hd95(fixed_labels: Array, warped_labels: Array, affine: np.ndarray) -> dict[int, float]:
    """Measure how far apart the surfaces of each label are: the 95th percentile Hausdorff distance.

    `max(P95 of d(s, W) over s in F, P95 of d(s, F) over s in W)`, F and W the centres of the voxels of a label that
    have a face neighbour, or the image's border, outside of it; distances in millimetres, on oblique grids too.

    Args:
        fixed_labels: [*S] integers; 0 and below are background.
        warped_labels: [*S], the moving labels on the fixed grid.
        affine: [4, 4] or [d + 1, d + 1], voxels to millimetres.

    Returns:
        Label -> millimetres, for the labels that are in both.

    Raises:
        ValueError: as `dice`, or an affine that does not fit.
        ModuleNotFoundError: SciPy is not installed.

    Example:
        >>> fixed, warped = np.zeros((9, 9, 9)), np.zeros((9, 9, 9))
        >>> fixed[2:5, 2:5, 2:5] = warped[4:7, 2:5, 2:5] = 1
        >>> hd95(fixed, warped, np.diag([1.5, 1, 1, 1]))
        {1: 3.0}
    """
    from scipy.ndimage import find_objects
    from scipy.spatial import KDTree  # imported here: only this metric needs SciPy

    fixed, warped = _label_pair(fixed_labels, warped_labels)
    matrix = grid_matrix(affine, fixed.ndim)[:-1, :-1]
    result = {}
    for label, (box_f, box_w) in enumerate(zip(find_objects(fixed), find_objects(warped), strict=False), start=1):
        if box_f is None or box_w is None:
            continue
        f = _surface(fixed[box_f] == label, box_f, matrix)
        w = _surface(warped[box_w] == label, box_w, matrix)
        there, back = KDTree(w).query(f)[0], KDTree(f).query(w)[0]
        result[label] = float(max(np.percentile(there, 95), np.percentile(back, 95)))
    return result


def mean_over_labels(values: dict[int, float]) -> float:
    """Average what `dice` or `hd95` returned, each label counting once.

    Args:
        values: label -> value.

    Returns:
        The mean; NaN where the two images have no label in common.

    Example:
        >>> mean_over_labels({1: 0.5, 2: 1.0})
        0.75
    """
    return fmean(values.values()) if values else float("nan")


def tre(
    displacement: Array | None, fixed_points: Array, moving_points: Array, affine: np.ndarray | None = None
) -> dict[str, float]:
    """Measure the target registration error: `|p_fixed + d(p_fixed) - p_moving|` over corresponding landmarks.

    The displacement is interpolated linearly and held constant beyond the grid.

    Args:
        displacement: [d, *S] on the fixed grid, RAS millimetres; None for the error before registration.
        fixed_points: [P, d], RAS millimetres.
        moving_points: [P, d], the same points in the moving image.
        affine: [4, 4] or [d + 1, d + 1], voxels of the fixed grid to RAS millimetres; needed with a displacement.

    Returns:
        "mean", "median", "p90" and "max", in millimetres.

    Raises:
        ValueError: points that do not correspond, or that do not fit the displacement; no affine.

    Example:
        >>> points = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
        >>> tre(np.zeros((3, 4, 4, 4)), points, points + [3, 0, 4], np.eye(4))
        {'mean': 5.0, 'median': 5.0, 'p90': 5.0, 'max': 5.0}
    """
    fixed, moving = _numpy(fixed_points).astype(np.float64), _numpy(moving_points).astype(np.float64)
    if fixed.ndim != 2 or fixed.shape != moving.shape or len(fixed) == 0:
        raise ValueError(
            f"fixed and moving points must both be [P, d], got {list(fixed.shape)} and {list(moving.shape)}"
        )
    predicted = fixed
    if displacement is not None:
        field = _field(displacement)
        if affine is None or len(field) != fixed.shape[1]:
            raise ValueError(
                f"a displacement of {len(field)} components needs its affine and points [P, {len(field)}], "
                f"got {list(fixed.shape)} and {'no affine' if affine is None else 'an affine'}"
            )
        matrix = grid_matrix(affine, len(field))
        voxels = (fixed - matrix[:-1, -1]) @ np.linalg.inv(matrix[:-1, :-1]).T
        predicted = fixed + sample(field[None].double(), torch.from_numpy(voxels)[None])[0].numpy()
    error = np.linalg.norm(predicted - moving, axis=1)
    return {
        "mean": float(error.mean()),
        "median": float(np.median(error)),
        "p90": float(np.percentile(error, 90)),
        "max": float(error.max()),
    }


def folding(displacement: Array, affine: np.ndarray, mask: Array | None = None) -> float:
    """Measure how much of the field folds: the percentage of voxels where `det(I + dd/dp) <= 0`.

    Derivatives are central differences in world coordinates; voxels on the border of the grid are left out.

    Args:
        displacement: [d, *S], RAS millimetres.
        affine: [4, 4] or [d + 1, d + 1], voxels to RAS millimetres.
        mask: [*S], above zero where voxels count; all by default.

    Returns:
        Percent, 0 to 100.

    Raises:
        ValueError: shapes that do not fit, fewer than 3 voxels along an axis, a mask without an interior voxel.

    Example:
        >>> mirror = np.zeros((3, 6, 6, 6)); mirror[0] = -2 * np.arange(6.0)[:, None, None]
        >>> folding(mirror, np.eye(4))
        100.0
    """
    return regularity(displacement, affine, mask)["folding_percent"]


def sd_log_jacobian(displacement: Array, affine: np.ndarray, mask: Array | None = None) -> float:
    """Measure how unevenly the field stretches: the standard deviation of `log det(I + dd/dp)`.

    Determinants are cut off at 1e-9 and 1e9. Derivatives and border as in `folding`.

    Args:
        displacement: [d, *S], RAS millimetres.
        affine: [4, 4] or [d + 1, d + 1], voxels to RAS millimetres.
        mask: [*S], above zero where voxels count; all by default.

    Returns:
        The standard deviation; 0 for an affine map.

    Raises:
        ValueError: as `folding`.

    As in the Learn2Reg challenge: Hering et al., IEEE Transactions on Medical Imaging 42 (2023), 697.

    Example:
        >>> sd_log_jacobian(np.zeros((3, 6, 6, 6)), np.eye(4))
        0.0
    """
    return regularity(displacement, affine, mask)["sd_log_jacobian"]


def regularity(displacement: Array, affine: np.ndarray, mask: Array | None = None) -> dict[str, float]:
    """Measure folding and unevenness in one pass over the field.

    Args:
        displacement: [d, *S], RAS millimetres.
        affine: [4, 4] or [d + 1, d + 1], voxels to RAS millimetres.
        mask: [*S], above zero where voxels count; all by default.

    Returns:
        "folding_percent" as `folding`, "sd_log_jacobian" as `sd_log_jacobian`.

    Raises:
        ValueError: as `folding`.

    Example:
        >>> regularity(np.zeros((3, 6, 6, 6)), np.eye(4))
        {'folding_percent': 0.0, 'sd_log_jacobian': 0.0}
    """
    # Chan's update: slabs are merged by their means, so that no sum of squares cancels
    folded, count, mean, squares = 0, 0, 0.0, 0.0
    for determinant in _determinants(displacement, affine, mask):
        if determinant.numel() == 0:
            continue
        folded += int(torch.count_nonzero(determinant <= 0))
        value = determinant.clamp_(_LEAST_DETERMINANT, _LARGEST_DETERMINANT).log_()
        slab_mean = float(value.mean())
        total = count + value.numel()
        squares += float((value - slab_mean).square_().sum()) + (slab_mean - mean) ** 2 * count * value.numel() / total
        mean += (slab_mean - mean) * value.numel() / total
        count = total
    _check_counted(count)
    return {"folding_percent": 100.0 * folded / count, "sd_log_jacobian": (squares / count) ** 0.5}


def endpoint_error(displacement: Array, truth: Array, mask: Array | None = None) -> dict[str, float]:
    """Measure the distance to a known field: `|d(x) - d_true(x)|`.

    Args:
        displacement: [d, *S], millimetres.
        truth: [d, *S], the known displacement on the same grid.
        mask: [*S], above zero where voxels count; all by default.

    Returns:
        "mean" and "p95", in millimetres.

    Raises:
        ValueError: different shapes, or an empty mask.

    Example:
        >>> endpoint_error(np.full((3, 4, 4, 4), 1.0), np.full((3, 4, 4, 4), 3.0))["mean"].__round__(3)
        3.464
    """
    a, b = _field(displacement), _field(truth)
    if a.shape != b.shape:
        raise ValueError(f"both displacements must have one shape, got {list(a.shape)} and {list(b.shape)}")
    error = torch.linalg.vector_norm(a.double() - b.double(), dim=0).numpy()
    inside = _inside(mask, a)
    error = error.ravel() if inside is None else error[inside.numpy()]
    _check_counted(error.size)
    return {"mean": float(error.mean()), "p95": float(np.percentile(error, 95))}


def _numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def _label_pair(fixed_labels: Array, warped_labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """Both label maps as int64, background 0."""
    fixed, warped = _numpy(fixed_labels), _numpy(warped_labels)
    if fixed.shape != warped.shape:
        raise ValueError(f"labels must be on one grid, got {list(fixed.shape)} and {list(warped.shape)}")
    return _labels(fixed), _labels(warped)


def _labels(values: np.ndarray) -> np.ndarray:
    labels = values.astype(np.int64)
    if not np.array_equal(labels, values) or labels.max(initial=0) >= 2**24:
        raise ValueError(
            f"labels must be integers below 2^24, got values up to {values.max():g} of type {values.dtype}"
        )
    return np.maximum(labels, 0, out=labels)


def _surface(inside: np.ndarray, box: tuple[slice, ...], matrix: np.ndarray) -> np.ndarray:
    """[K, d] millimetres: the voxels of a label that have a face neighbour outside, given inside its bounding box."""
    padded = np.pad(inside, 1)
    core = (slice(1, -1),) * inside.ndim
    interior = padded[core].copy()
    for axis in range(inside.ndim):
        interior &= np.roll(padded, 1, axis)[core] & np.roll(padded, -1, axis)[core]
    voxels = np.argwhere(inside & ~interior) + [part.start for part in box]
    return voxels @ matrix.T


def _field(displacement: Array) -> torch.Tensor:
    """[d, *S] on the CPU, in its own type."""
    field = torch.as_tensor(displacement).detach().cpu()
    if field.ndim not in (3, 4) or field.shape[0] != field.ndim - 1:
        raise ValueError(f"displacement must be [3, X, Y, Z] or [2, X, Y], got {list(field.shape)}")
    return field


def _inside(mask: Array | None, field: torch.Tensor) -> torch.Tensor | None:
    if mask is None:
        return None
    inside = torch.as_tensor(mask).detach().cpu() > 0
    if inside.shape != field.shape[1:]:
        raise ValueError(f"mask must be {list(field.shape[1:])} as the displacement, got {list(inside.shape)}")
    return inside


def _check_counted(count: int) -> None:
    if count == 0:
        raise ValueError("the mask must have a voxel above zero (off the border of the grid), got none")


def _determinants(displacement: Array, affine: np.ndarray, mask: Array | None) -> Iterator[torch.Tensor]:
    """Give `det(I + dd/dp)` at the interior voxels that count, [K] float64, a few planes at a time.

    With A the affine's linear part, `I + (dd/dx) A^-1` has the determinant of `I + A^-1 (dd/dx)`: the displacement is
    taken to voxels once and each derivative is then a plain difference.
    """
    field = _field(displacement)
    d, *extent = field.shape
    if min(extent) < 3:
        raise ValueError(f"the displacement must have at least 3 voxels along each axis, got {extent}")
    inside = _inside(mask, field)
    to_voxels = torch.from_numpy(np.linalg.inv(grid_matrix(affine, d)[:-1, :-1]))
    planes = max(1, _SLAB // field[0, 0].numel())
    core = (slice(1, -1),) * d
    for start in range(1, extent[0] - 1, planes):
        stop = min(start + planes, extent[0] - 1)
        u = torch.tensordot(to_voxels, field[:, start - 1 : stop + 1].double(), dims=1)
        determinant = ops.jacobian_determinant(u[None])[0][core]
        yield determinant.ravel() if inside is None else determinant[inside[start:stop][:, *core[1:]]]
