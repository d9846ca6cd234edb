"""What the panels of a picture show, slice by slice: windows, differences, the deformation and its Jacobian."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deqreg.registration import Registration
from deqreg.report.planes import Plane

_SAMPLES = 200_000  # voxels that windows and the fit look at, about


@dataclass(frozen=True)
class Layers:
    """The images of a registration on the fixed grid, and how to look at them.

    Attributes:
        images: fixed, moving under the affine map, warped; each [*S].
        windows: (black, white) of each image.
        slope: of the line that takes moving intensities to fixed ones.
        intercept: of that line.
        displacement: [d, *S], RAS millimetres, the total transform.
        grid: [d + 1, d + 1], voxels of the fixed grid to RAS millimetres.
        affine: [d + 1, d + 1], the world map before the deformable part.
        moving_grid: [d + 1, d + 1], voxels of the moving image to RAS millimetres.
        moving_shape: its voxels along each axis.
        outline: [*S] bool, the fixed mask; None without one.
    """

    images: tuple[np.ndarray, np.ndarray, np.ndarray]
    windows: tuple[tuple[float, float], ...]
    slope: float
    intercept: float
    displacement: np.ndarray
    grid: np.ndarray
    affine: np.ndarray
    moving_grid: np.ndarray
    moving_shape: tuple[int, ...]
    outline: np.ndarray | None = None

    def image(self, plane: Plane, number: int) -> np.ndarray:
        """Cut one of the images; NaN where the moving image does not reach."""
        values = plane.cut(self.images[number])
        if number == 0:
            return values
        voxels = plane.voxels(self.displacement.shape[1:])
        if number == 2:
            world = _apply(self.grid, voxels) + np.stack([plane.cut(component) for component in self.displacement])
        else:
            world = _apply(self.affine @ self.grid, voxels)
        return np.where(self.reached(world), values, np.nan)

    def difference(self, plane: Plane, number: int) -> np.ndarray:
        """`fixed - (slope image + intercept)` in a slice; image 1 is before, 2 after."""
        return plane.cut(self.images[0]) - (self.slope * self.image(plane, number) + self.intercept)

    def reached(self, world: np.ndarray) -> np.ndarray:
        """Tell which of the points [d, ...], RAS millimetres of the moving image, are inside of its voxels."""
        voxels = _apply(np.linalg.inv(self.moving_grid), world)
        size = np.reshape(self.moving_shape, (-1, *[1] * (world.ndim - 1)))
        return np.logical_and.reduce((voxels >= -0.5) & (voxels < size - 0.5), axis=0)


def prepare(registration: Registration, content: np.ndarray) -> Layers:
    """Choose windows and match intensities.

    Args:
        registration: what `deqreg.register` returned.
        content: [*S] bool, the voxels of the fixed grid that matter.

    Returns:
        The layers. Windows, and the line between intensities that is fitted to the warped image by least squares,
        look at the box around the content, where the moving image reaches.
    """
    fixed, before, warped = (
        tensor.numpy() for tensor in (registration.fixed.data, registration.affine_warped, registration.warped)
    )
    mask = registration.fixed_mask
    layers = Layers(
        images=(fixed, before, warped),
        windows=((0.0, 1.0),) * 3,
        slope=1.0,
        intercept=0.0,
        displacement=registration.displacement.numpy(),
        grid=registration.fixed.matrix,
        affine=registration.affine,
        moving_grid=registration.moving.matrix,
        moving_shape=tuple(registration.moving.data.shape),
        outline=None if mask is None else mask.data.numpy() > 0,
    )
    box = [(int(found.min()), int(found.max()) + 1) for found in np.nonzero(content)]
    stride = max(1, round((np.prod([stop - start for start, stop in box]) / _SAMPLES) ** (1 / fixed.ndim)))
    voxels = np.stack(np.meshgrid(*[np.arange(*ends, stride) for ends in box], indexing="ij"))
    some = tuple(voxels)
    inside = layers.reached(_apply(layers.grid, voxels) + layers.displacement[:, *some])
    inside = inside if inside.any() else ~inside
    target, source = fixed[some][inside].astype(np.float64), warped[some][inside].astype(np.float64)
    variance = source.var()
    slope = float(((source - source.mean()) * (target - target.mean())).mean() / variance) if variance > 0 else 0.0
    window = _window(source)
    return replace(
        layers,
        windows=(_window(target), window, window),
        slope=slope,
        intercept=float(target.mean() - slope * source.mean()),
    )


def deformation(plane: Plane, layers: Layers) -> tuple[np.ndarray, np.ndarray]:
    """Find where each pixel of a slice goes by the deformable part alone.

    With W the affine map, `W^-1 (p + d(p)) - p`, projected on the slice.

    Args:
        plane: the slice.
        layers: from `prepare`.

    Returns:
        Two [rows, columns]: millimetres down and to the right of the screen.

    Example:
        >>> from deqreg.report.planes import planes
        >>> still = np.zeros((2, 8, 8), np.float32); still[0] = 3
        >>> layers = Layers((still[0],) * 3, ((0, 1),) * 3, 1.0, 0.0, still, *[np.eye(3)] * 3, (8, 8))
        >>> float(deformation(planes(np.eye(4), np.ones((8, 8), bool))[0], layers)[1][0, 0])  # to the patient's right
        -3.0
    """
    cut = np.stack([plane.cut(component) for component in layers.displacement])
    voxels = plane.voxels(layers.displacement.shape[1:])
    # in voxels of the fixed grid: M (grid x + d) - x with M = grid^-1 W^-1
    back = np.linalg.inv(layers.affine @ layers.grid)
    moved = _apply(back, _apply(layers.grid, voxels) + cut) - voxels
    edges = (plane.down, plane.right)
    down, right = (moved[edge.axis] * edge.spacing * (-1 if edge.flipped else 1) for edge in edges)
    return down, right


def log_jacobian(plane: Plane, layers: Layers) -> np.ndarray:
    """Take the logarithm of the total transform's Jacobian determinant in a slice.

    Args:
        plane: the slice.
        layers: from `prepare`.

    Returns:
        [rows, columns] of `log det(I + dd/dp)` by central differences; NaN where the determinant is not positive.

    Example:
        >>> from deqreg.report.planes import planes
        >>> stretch = np.zeros((2, 8, 8), np.float32); stretch[0] = np.arange(8.0)[:, None]
        >>> layers = Layers((stretch[0],) * 3, ((0, 1),) * 3, 1.0, 0.0, stretch, *[np.eye(3)] * 3, (8, 8))
        >>> round(float(log_jacobian(planes(np.eye(4), np.ones((8, 8), bool))[0], layers)[4, 4]), 4)
        0.6931
    """
    slab = plane.slab(layers.displacement)
    u = np.tensordot(np.linalg.inv(layers.grid[:-1, :-1]), slab, 1)  # in voxels
    gradients = [np.stack(np.gradient(component)) for component in u]
    if plane.through is not None:
        gradients = [np.take(gradient, 1, axis=plane.through + 1) for gradient in gradients]
    jacobian = np.moveaxis(np.stack(gradients), (0, 1), (-2, -1)) + np.eye(len(u))
    determinant = np.linalg.det(jacobian)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.where(determinant > 0, np.log(determinant), np.nan)
    return plane.lay(log)


def _window(values: np.ndarray) -> tuple[float, float]:
    """Leave out the darkest and the brightest hundredth."""
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    return (low, high) if high > low else (low, low + 1.0)


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points [d, ...] by a homogeneous matrix [d + 1, d + 1]."""
    return np.tensordot(matrix[:-1, :-1], points, 1) + matrix[:-1, -1].reshape(-1, *[1] * (points.ndim - 1))
