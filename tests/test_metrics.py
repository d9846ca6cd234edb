"""The metrics against their definitions, written out voxel by voxel or through SciPy and NumPy's own derivatives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from deqreg.io import read_displacement, read_image, read_labels, read_mask, voxel_map
from deqreg.metrics import dice, endpoint_error, folding, hd95, mean_over_labels, sd_log_jacobian, tre
from tests.io.grids import oblique_affine

KNOWN = Path(__file__).parents[1] / "examples" / "data" / "known_field"
SHAPE = (21, 17, 19)
OBLIQUE = oblique_affine((0.8, 1.2, 3.1), (0.3, -0.5, 0.2), (40, -80, 1200), SHAPE, (-1, 1, -1), (2, 0, 1))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def field(rng):
    """A field that folds in a few percent of its voxels."""
    noise = gaussian_filter(rng.standard_normal((3, *SHAPE)), (0, 2, 2, 2))
    return (noise / noise.std() * 2.2).astype(np.float32)


@pytest.fixture
def mask(rng):
    return (rng.random(SHAPE) > 0.5).astype(np.uint8)


@pytest.fixture
def labels(rng):
    """Blobs, of which 7 is in the first map only and 9 in the second only."""
    values = gaussian_filter(rng.standard_normal((2, *SHAPE)), (0, 2, 2, 2))
    fixed, warped = np.digitize(values / values.std(), [-0.5, 0.5, 1.0]) * 2
    fixed[0, 0, 0], warped[1, 1, 1] = 7, 9
    return fixed, warped


def determinants(field, affine):
    """By NumPy: world derivatives of every component, then the determinant of a 3 x 3 matrix a voxel."""
    d = len(field)
    gradient = np.array([np.gradient(component.astype(np.float64)) for component in field])  # [i, a, *S]
    in_world = np.moveaxis(np.tensordot(np.linalg.inv(affine[:d, :d]), gradient, axes=(0, 1)), 0, -1)  # [i, *S, j]
    jacobian = np.moveaxis(in_world, 0, -2) + np.eye(d)
    return np.linalg.det(jacobian)[(slice(1, -1),) * d]


class TestJacobian:
    def test_against_numpy_on_an_oblique_grid(self, field, mask):
        expected = determinants(field, OBLIQUE)
        assert 0.5 < 100 * np.mean(expected <= 0) < 30
        assert folding(field, OBLIQUE) == pytest.approx(100 * np.mean(expected <= 0), abs=1e-9)
        inside = expected[mask[1:-1, 1:-1, 1:-1] > 0]
        assert folding(field, OBLIQUE, mask) == pytest.approx(100 * np.mean(inside <= 0), abs=1e-9)
        log = np.log(np.clip(expected, 1e-9, 1e9))
        # float64 on both sides; the logarithm of a determinant near zero magnifies rounding
        assert sd_log_jacobian(field, OBLIQUE) == pytest.approx(log.std(), rel=1e-6)
        log_inside = np.log(np.clip(inside, 1e-9, 1e9))
        assert sd_log_jacobian(torch.from_numpy(field), OBLIQUE, torch.from_numpy(mask)) == pytest.approx(
            log_inside.std(), rel=1e-6
        )

    def test_two_dimensions(self, field):
        affine = np.diag([2.0, -3.0, 1.0, 1.0])
        plane = field[:2, :, :, 4] * 2
        expected = determinants(plane, affine)
        assert (expected <= 0).any()
        assert folding(plane, affine) == pytest.approx(100 * np.mean(expected <= 0), abs=1e-9)

    def test_slabs_do_not_show(self, rng):
        # 2^19 voxels are treated at a time: here 5 planes, then the other 2 of the interior
        noise = gaussian_filter(rng.standard_normal((3, 9, 300, 300)), (0, 1, 1, 1)).astype(np.float32)
        expected = determinants(noise * 8, np.eye(4))
        assert folding(noise * 8, np.eye(4)) == pytest.approx(100 * np.mean(expected <= 0), abs=1e-9)
        assert sd_log_jacobian(noise * 8, np.eye(4)) == pytest.approx(
            np.log(np.clip(expected, 1e-9, 1e9)).std(), rel=1e-6
        )

    def test_an_affine_displacement_stretches_evenly(self):
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
        world = np.tensordot(OBLIQUE[:3, :3], grid, axes=1)
        stretch = np.tensordot(np.diag([0.2, -0.3, 0.1]), world, axes=1)
        assert folding(stretch, OBLIQUE) == 0
        # 0 up to rounding at 1e-13 of positions, differenced
        assert sd_log_jacobian(stretch, OBLIQUE) == pytest.approx(0, abs=1e-9)
        mirror = np.tensordot(np.diag([-2.0, 0.0, 0.0]), world, axes=1)
        assert folding(mirror, OBLIQUE) == 100

    def test_what_cannot_be_measured(self, field):
        with pytest.raises(ValueError, match=r"displacement must be \[3, X, Y, Z\] or \[2, X, Y\], got \[21, 17, 19\]"):
            folding(field[0], OBLIQUE)
        with pytest.raises(ValueError, match=r"mask must be \[21, 17, 19\] as the displacement, got \[21, 17\]"):
            folding(field, OBLIQUE, np.ones((21, 17)))
        border = np.ones(SHAPE)
        border[1:-1, 1:-1, 1:-1] = 0
        with pytest.raises(ValueError, match="mask must have a voxel above zero"):
            sd_log_jacobian(field, OBLIQUE, border)
        with pytest.raises(ValueError, match="at least 3 voxels along each axis"):
            folding(field[:, :2], OBLIQUE)


class TestLabels:
    def test_dice_against_its_definition(self, labels):
        fixed, warped = labels
        expected = {
            label: 2 * np.sum((fixed == label) & (warped == label)) / (np.sum(fixed == label) + np.sum(warped == label))
            for label in (2, 4, 6)
        }
        # 0 is background, 7 and 9 are in one map only
        assert dice(fixed, warped) == pytest.approx(expected)
        assert mean_over_labels(dice(fixed, warped)) == pytest.approx(np.mean(list(expected.values())))

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
    def test_types_and_tensors(self, labels, dtype):
        fixed, warped = labels
        assert dice(torch.from_numpy(fixed.astype(dtype)), warped.astype(dtype)) == dice(fixed, warped)

    def test_negative_values_are_background(self):
        assert dice(np.array([[-1, 3, 3]]), np.array([[-1, 3, -2]])) == {3: pytest.approx(2 / 3)}

    def test_no_label_in_common(self):
        assert dice(np.array([[1, 0]]), np.array([[0, 2]])) == {}
        assert hd95(np.array([[1, 0]]), np.array([[0, 2]]), np.eye(4)) == {}
        assert np.isnan(mean_over_labels({}))

    def test_what_cannot_be_measured(self):
        with pytest.raises(ValueError, match=r"labels must be on one grid, got \[3\] and \[4\]"):
            dice(np.zeros(3), np.zeros(4))
        with pytest.raises(ValueError, match=r"labels must be integers below 2\^24, got values up to 0.5"):
            dice(np.full(3, 0.5), np.zeros(3))

    def test_hd95_against_distance_transforms(self, labels):
        fixed, warped = labels
        spacing = (0.8, 1.2, 3.1)
        result = hd95(fixed, warped, OBLIQUE)
        assert sorted(result) == [2, 4, 6]
        for label, value in result.items():
            surfaces = []
            for side in (fixed == label, warped == label):
                outside = np.pad(~side, 1, constant_values=True)
                near = np.zeros_like(outside)
                for axis in range(3):
                    near |= np.roll(outside, 1, axis) | np.roll(outside, -1, axis)
                surfaces.append(side & near[1:-1, 1:-1, 1:-1])
            there = distance_transform_edt(~surfaces[1], sampling=spacing)[surfaces[0]]
            back = distance_transform_edt(~surfaces[0], sampling=spacing)[surfaces[1]]
            assert value == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-6)

    def test_hd95_of_a_shifted_square(self):
        fixed, warped = np.zeros((20, 20), int), np.zeros((20, 20), int)
        fixed[4:9, 4:9], warped[4:9, 7:12] = 5, 5
        assert hd95(fixed, warped, np.diag([1.0, 2.0, 1.0, 1.0])) == {5: 6.0}
        assert hd95(fixed, fixed, np.diag([1.0, 2.0, 1.0, 1.0])) == {5: 0.0}


class TestLandmarks:
    def test_against_scipy_also_beyond_the_grid(self, rng, field):
        voxels = rng.random((40, 3)) * (np.array(SHAPE) + 4) - 2.5
        fixed = voxels @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3]
        moving = fixed + rng.standard_normal((40, 3))
        at_points = np.stack([map_coordinates(c, voxels.T, order=1, mode="nearest") for c in field], axis=1)
        error = np.linalg.norm(fixed + at_points - moving, axis=1)
        expected = {
            "mean": error.mean(),
            "median": np.median(error),
            "p90": np.percentile(error, 90),
            "max": error.max(),
        }
        # SciPy interpolates to float32
        assert tre(field, fixed, moving, OBLIQUE) == pytest.approx(expected, rel=1e-5)
        assert tre(
            torch.from_numpy(field), torch.from_numpy(fixed), torch.from_numpy(moving), OBLIQUE
        ) == pytest.approx(expected, rel=1e-5)

    def test_two_dimensions_and_before_registration(self):
        field = np.zeros((2, 5, 6))
        field[0] = np.arange(6.0) * 10
        points = np.array([[2.0, 1.0], [4.0, 2.5]])
        # points (2, 1) and (4, 2.5) mm are voxels (1, 1) and (2, 2.5): displaced by 10 and 25 mm along x
        result = tre(field, points, points, np.diag([2.0, 1.0, 1.0, 1.0]))
        assert result == pytest.approx({"mean": 17.5, "median": 17.5, "p90": 23.5, "max": 25.0})
        assert tre(None, points, points + np.array([3, 4]))["mean"] == pytest.approx(5)

    def test_what_cannot_be_measured(self, field):
        points = np.zeros((4, 3))
        with pytest.raises(ValueError, match=r"must both be \[P, d\], got \[4, 3\] and \[3, 3\]"):
            tre(field, points, points[:3], OBLIQUE)
        with pytest.raises(ValueError, match="needs its affine"):
            tre(field, points, points)
        with pytest.raises(ValueError, match=r"needs its affine and points \[P, 3\], got \[4, 2\]"):
            tre(field, points[:, :2], points[:, :2], OBLIQUE)


class TestKnownField:
    """The example pair: the truth is there, so every figure has a right answer."""

    def test_figures_of_the_truth(self):
        truth = read_displacement(KNOWN / "true_displacement.nii.gz")
        fixed, moving = read_image(KNOWN / "fixed.nii.gz"), read_image(KNOWN / "moving.nii.gz")
        inside = read_mask(KNOWN / "fixed_mask.nii.gz", fixed).data
        zero = torch.zeros_like(truth.displacement)
        before = endpoint_error(zero, truth.displacement, inside)
        assert before["mean"] == pytest.approx(3.603, abs=1e-3)
        length = np.linalg.norm(truth.displacement.numpy(), axis=0)[inside.numpy() > 0]
        assert before["p95"] == pytest.approx(np.percentile(length, 95), rel=1e-5)
        assert endpoint_error(truth.displacement, truth.displacement) == {"mean": 0, "p95": 0}
        assert folding(truth.displacement, truth.affine) == 0

        labels = [
            read_labels(KNOWN / f"{side}_labels.nii.gz", image).data.numpy()
            for side, image in (("fixed", fixed), ("moving", moving))
        ]
        y = voxel_map(truth.displacement, fixed.affine, moving.affine).numpy()
        warped = map_coordinates(labels[1], y, order=0)
        after, initial = dice(labels[0], warped), dice(*labels)
        assert len(after) == 45
        # labels were resampled twice by nearest neighbours at 2 mm, so the truth is not at 1
        assert mean_over_labels(after) == pytest.approx(0.881, abs=2e-3)
        assert mean_over_labels(initial) < 0.7
        assert mean_over_labels(hd95(labels[0], warped, fixed.affine)) < 3

    def test_masks_and_shapes(self):
        with pytest.raises(ValueError, match=r"must have one shape, got \[3, 4, 4, 4\] and \[3, 4, 4, 5\]"):
            endpoint_error(np.zeros((3, 4, 4, 4)), np.zeros((3, 4, 4, 5)))
        with pytest.raises(ValueError, match="mask must have a voxel above zero"):
            endpoint_error(np.zeros((3, 4, 4, 4)), np.zeros((3, 4, 4, 4)), np.zeros((4, 4, 4)))
