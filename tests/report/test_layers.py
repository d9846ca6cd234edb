import numpy as np
import pytest
import torch

from deqreg import metrics
from deqreg.report.layers import deformation, log_jacobian, prepare
from deqreg.report.planes import content_of, planes
from tests.io.grids import oblique_affine

SHAPE = (12, 14, 10)
OBLIQUE = oblique_affine((1.5, 2.0, 2.5), (0.2, -0.15, 0.25), (5, -9, 40), SHAPE, flips=(-1, 1, -1))


def world(shape, affine):
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    return np.tensordot(affine[:3, :3], voxels, 1) + affine[:3, 3].reshape(3, 1, 1, 1)


def layers_of(registration, displacement, affine):
    made = registration(SHAPE, OBLIQUE)
    made.displacement, made.affine = torch.from_numpy(displacement.astype(np.float32)), affine
    content = content_of(made.fixed.data.numpy())
    return prepare(made, content), planes(OBLIQUE, content), made


def test_intensities_are_matched_before_the_difference(registration):
    layers, found, _ = layers_of(registration, np.zeros((3, *SHAPE)), np.eye(4))
    # warped is 2 fixed + 3, so the fit leaves nothing
    for plane in found:
        np.testing.assert_allclose(layers.difference(plane, 2), 0, atol=1e-3)
        assert np.abs(layers.difference(plane, 1)).max() > 10


def test_the_grid_shows_what_is_left_after_the_affine_map(registration):
    affine = np.eye(4)
    affine[:3] = [[1.1, 0.1, 0, 30], [-0.1, 0.95, 0.05, -20], [0, 0.1, 1.05, 10]]
    points = world(SHAPE, OBLIQUE)
    rest = OBLIQUE[:3, :3] @ [2.0, -1.0, 0.5]  # a shift by these voxels, in millimetres
    moved = np.tensordot(affine[:3, :3], points + rest.reshape(3, 1, 1, 1), 1) + affine[:3, 3].reshape(3, 1, 1, 1)
    layers, found, _ = layers_of(registration, moved - points, affine)
    for plane in found:
        for field, edge in zip(deformation(plane, layers), (plane.down, plane.right), strict=True):
            expected = [2.0, -1.0, 0.5][edge.axis] * edge.spacing * (-1 if edge.flipped else 1)
            np.testing.assert_allclose(field, expected, atol=1e-3)


def test_log_jacobian_of_a_linear_map_is_that_of_its_determinant(registration):
    linear = np.array([[1.2, 0.1, 0], [0, 0.9, 0.2], [0.1, 0, 1.1]])
    displacement = np.tensordot(linear - np.eye(3), world(SHAPE, OBLIQUE), 1)
    layers, found, _ = layers_of(registration, displacement, np.eye(4))
    for plane in found:
        np.testing.assert_allclose(log_jacobian(plane, layers), np.log(np.linalg.det(linear)), atol=1e-4)


def test_log_jacobian_agrees_with_the_metric(registration):
    generator = np.random.default_rng(1)
    displacement = generator.normal(0, 0.3, (3, *SHAPE))
    layers, found, made = layers_of(registration, displacement, np.eye(4))
    axial = found[0]
    slab = np.zeros(SHAPE)
    slab[1:-1, 1:-1, axial.index] = 1
    expected = metrics.sd_log_jacobian(made.displacement, OBLIQUE, slab)
    # central differences in the interior, as the metric's; no voxel folds here
    assert log_jacobian(axial, layers)[1:-1, 1:-1].std() == pytest.approx(expected, rel=1e-5)


def test_folded_voxels_are_marked(registration):
    mirror = -2 * world(SHAPE, OBLIQUE)
    layers, found, _ = layers_of(registration, mirror, np.eye(4))
    assert np.isnan(log_jacobian(found[0], layers)).all()


def test_what_the_moving_image_does_not_reach_is_not_a_number(registration):
    made = registration((12, 10), np.diag([1.0, 1.0, 1.0, 1.0]))
    made.displacement = torch.zeros(2, 12, 10)
    made.displacement[0] = 4.4  # along x, out of the image at the far end
    made.affine = np.eye(3)
    layers = prepare(made, np.ones((12, 10), bool))
    plane = planes(np.eye(4), np.ones((12, 10), bool))[0]
    lost = np.zeros((12, 10), bool)
    lost[-4:] = True  # 8 + 4.4 is past 11.5
    np.testing.assert_array_equal(np.isnan(layers.image(plane, 2)), plane.cut(lost))
    np.testing.assert_array_equal(np.isnan(layers.difference(plane, 2)), plane.cut(lost))
    assert np.isfinite(layers.image(plane, 1)).all()
    assert np.isfinite(layers.image(plane, 0)).all()
