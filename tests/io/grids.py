"""Grids that are hard to get right: oblique, anisotropic, flipped, far from the origin."""

import numpy as np


def rotation(angles):
    """Rotate about x, then y, then z."""
    total = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        total = step @ total
    return total


def oblique_affine(spacing, angles, centre, shape, flips=(1, 1, 1), order=(0, 1, 2)):
    """Give the affine of a grid of `shape` about `centre`, its axes flipped, permuted and turned."""
    linear = rotation(angles) @ np.diag(flips)[:, list(order)] @ np.diag(spacing)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.asarray(centre) - linear @ ((np.array(shape) - 1) / 2)
    return affine
