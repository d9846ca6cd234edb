import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from deqreg.io import (
    DisplacementField,
    read_displacement,
    read_transform,
    voxel_map,
    world_displacement,
    write_displacement,
    write_volume,
)
from tests.io.grids import oblique_affine

FIXED_SHAPE, MOVING_SHAPE = (24, 30, 20), (28, 22, 26)
# the same 60 mm or so of the world, 35 mm apart along z, 1.3 m from the origin, on grids that share no axis
FIXED = oblique_affine((2.5, 2.0, 3.0), (0.3, -0.2, 0.5), (40, -30, 1300), FIXED_SHAPE, (-1, -1, 1), (1, 0, 2))
MOVING = oblique_affine((2.1, 2.9, 2.4), (-0.4, 0.1, -0.3), (38, -32, 1335), MOVING_SHAPE, (-1, -1, -1), (2, 0, 1))
FLIPPED = oblique_affine((2.1, 2.9, 2.4), (0, 0, 0), (38, -32, 1335), MOVING_SHAPE, (-1, -1, -1))


def smooth(rng, shape, sigma, scale):
    """A smooth random array with values of about `scale`."""
    noise = gaussian_filter(rng.standard_normal(shape), [0] * (len(shape) - 3) + [sigma] * 3)
    return (noise / noise.std() * scale).astype(np.float32)


def shift_field(rng):
    """4 mm of smooth deformation and the 35 mm between the two tables."""
    return torch.from_numpy(smooth(rng, (3, *FIXED_SHAPE), 4, 4.0) + np.float32([[[[-2]]], [[[-2]]], [[[35]]]]))


def field_transform(path):
    image = SimpleITK.ReadImage(path)
    vector = SimpleITK.sitkVectorFloat64
    return SimpleITK.DisplacementFieldTransform(SimpleITK.Cast(image, vector))


class TestDisplacementFiles:
    @pytest.mark.parametrize("moving_affine", [MOVING, FLIPPED], ids=["oblique", "flipped"])
    def test_itk_resamples_the_native_moving_image_as_we_sample_it(self, tmp_path, rng, moving_affine):
        moving = smooth(rng, MOVING_SHAPE, 1.0, 100.0)
        d = shift_field(rng)
        write_displacement(tmp_path / "displacement.nii.gz", d, FIXED)
        write_volume(tmp_path / "fixed.nii.gz", torch.zeros(FIXED_SHAPE), FIXED)
        write_volume(tmp_path / "moving.nii.gz", moving, moving_affine)
        in_itk = SimpleITK.Resample(
            SimpleITK.ReadImage(tmp_path / "moving.nii.gz"),
            SimpleITK.ReadImage(tmp_path / "fixed.nii.gz"),
            field_transform(tmp_path / "displacement.nii.gz"),
            SimpleITK.sitkLinear,
        )

        y = voxel_map(d, FIXED, moving_affine).numpy()
        expected = map_coordinates(moving, y, order=1)
        # ITK and SciPy fade differently in the half voxel about the border
        inside = np.all([(c > 0.01) & (c < n - 1.01) for c, n in zip(y, MOVING_SHAPE, strict=True)], axis=0)
        assert inside.mean() > 0.5
        # headers hold float32: at 1.3 m an origin is off by up to 6e-5 mm, here 3e-5 voxels of about 100 a voxel
        np.testing.assert_allclose(SimpleITK.GetArrayFromImage(in_itk).T[inside], expected[inside], atol=0.02)

    def test_the_file_is_what_itk_and_ants_expect(self, tmp_path, rng):
        d = shift_field(rng)
        write_displacement(tmp_path / "displacement.nii.gz", d, FIXED, space=4)
        stored = nib.load(tmp_path / "displacement.nii.gz")
        assert stored.shape == (*FIXED_SHAPE, 1, 3)
        assert stored.get_data_dtype() == np.float32
        assert int(stored.header["intent_code"]) == 1007
        assert stored.header.get_xyzt_units()[0] == "mm"
        assert (int(stored.header["qform_code"]), int(stored.header["sform_code"])) == (4, 4)
        on_file = np.asanyarray(stored.dataobj)[:, :, :, 0]
        np.testing.assert_array_equal(on_file, np.moveaxis(d.numpy(), 0, -1) * np.float32([-1, -1, 1]))

    def test_a_point_goes_where_the_field_says(self, tmp_path, rng):
        d = shift_field(rng)
        write_displacement(tmp_path / "displacement.nii.gz", d, FIXED)
        transform = field_transform(tmp_path / "displacement.nii.gz")
        for voxel in [(3, 4, 5), (20, 7, 11), (12, 25, 2)]:
            fixed_point = (FIXED @ [*voxel, 1])[:3]
            lps = np.array([-1, -1, 1])
            moved = np.array(transform.TransformPoint((fixed_point * lps).tolist())) * lps
            np.testing.assert_allclose(moved, fixed_point + d[:, *voxel].numpy(), atol=2e-3)  # float32 header at 1.3 m

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_round_trip(self, tmp_path, rng, suffix):
        d = shift_field(rng)
        write_displacement(tmp_path / f"d{suffix}", d, FIXED)
        field = read_displacement(tmp_path / f"d{suffix}")
        assert torch.equal(field.displacement, d)
        assert field.displacement.is_contiguous()
        np.testing.assert_allclose(field.affine, FIXED, atol=1e-4)
        assert os.listdir(tmp_path) == [f"d{suffix}"]

    def test_a_field_that_itk_wrote(self, tmp_path, rng):
        lps = rng.standard_normal((7, 6, 5, 3)).astype(np.float32)  # z, y, x, component
        image = SimpleITK.GetImageFromArray(lps, isVector=True)
        image.SetSpacing((2, 3, 4))
        image.SetOrigin((10, -20, 30))
        SimpleITK.WriteImage(image, tmp_path / "itk.nii.gz")
        field = read_transform(tmp_path / "itk.nii.gz")
        assert isinstance(field, DisplacementField)
        expected = lps.transpose(3, 2, 1, 0) * np.float32([-1, -1, 1])[:, None, None, None]
        np.testing.assert_array_equal(field.displacement.numpy(), expected)
        np.testing.assert_allclose(field.affine[:3, 3], [-10, 20, 30])

    def test_two_dimensions(self, tmp_path, rng):
        d = torch.from_numpy(rng.standard_normal((2, 6, 7)).astype(np.float32))
        affine = np.diag([-2.0, 3.0, 1.0, 1.0])
        affine[:2, 3] = 10, -20
        write_displacement(tmp_path / "d.nii.gz", d, affine)
        assert nib.load(tmp_path / "d.nii.gz").shape == (6, 7, 1, 1, 2)
        assert torch.equal(read_displacement(tmp_path / "d.nii.gz").displacement, d)
        transform = field_transform(tmp_path / "d.nii.gz")
        fixed_point = (affine @ [2, 5, 0, 1])[:2]
        moved = -np.array(transform.TransformPoint((-fixed_point).tolist()))
        np.testing.assert_allclose(moved, fixed_point + d[:, 2, 5].numpy(), atol=1e-5)

    def test_what_is_no_displacement_field(self, tmp_path, rng):
        path = tmp_path / "d.nii.gz"

        def refuse(array, said, name=""):
            image = nib.Nifti1Image(array.astype(np.float32), np.eye(4))
            image.header["intent_name"] = name
            nib.save(image, path)
            with pytest.raises(ValueError, match=said) as error:
                read_displacement(path, "initial transform")
            assert str(error.value).startswith(f"initial transform {path}: ")
            assert "\n" not in str(error.value)

        field = rng.standard_normal((6, 7, 5, 1, 3))
        shape_rule = r"must have shape \(X, Y, Z, 1, 3\) or \(X, Y, 1, 1, 2\), LPS millimetres as ITK writes it, got "
        refuse(field[:, :, :, 0], shape_rule + r"\[6, 7, 5, 3\]")
        refuse(field[..., 0, 0], shape_rule + r"\[6, 7, 5\]")
        refuse(field[..., :2], shape_rule + r"\[6, 7, 5, 1, 2\]")
        refuse(field, "is a SPM deformation of absolute positions", "Mapping")
        refuse(field, "is a NiftyReg transformation", "NREG_TRANS")
        refuse(np.where(field > 2, np.nan, field), "NaN or infinite")
        with pytest.raises(ValueError, match="no such file"):
            read_displacement(tmp_path / "none.nii.gz")

    def test_what_cannot_be_written(self, tmp_path):
        with pytest.raises(ValueError, match=r"displacement must be \[3, X, Y, Z\] or \[2, X, Y\], got \[4, 5, 6, 3\]"):
            write_displacement(tmp_path / "d.nii.gz", torch.zeros(4, 5, 6, 3), FIXED)
        with pytest.raises(ValueError, match="must be finite"):
            write_displacement(tmp_path / "d.nii.gz", torch.full((3, 4, 5, 6), float("nan")), FIXED)
        assert os.listdir(tmp_path) == []


class TestVoxelMaps:
    def test_formula(self, rng):
        y = torch.from_numpy(rng.random((3, 5, 6, 7)) * 20)
        x = np.stack(np.meshgrid(*[np.arange(n) for n in (5, 6, 7)], indexing="ij"))
        expected = (
            np.einsum("ij,jxyz->ixyz", MOVING[:3, :3], y.numpy())
            - np.einsum("ij,jxyz->ixyz", FIXED[:3, :3], x)
            + (MOVING - FIXED)[:3, 3, None, None, None]
        )
        d = world_displacement(y, FIXED, MOVING)
        np.testing.assert_allclose(d.numpy(), expected, atol=1e-10)
        np.testing.assert_allclose(voxel_map(d, FIXED, MOVING).numpy(), y.numpy(), atol=1e-10)

    def test_float32_far_from_the_origin_keeps_micrometres(self, rng):
        far = FIXED.copy()
        far[:3, 3] += 1e5
        identity = np.stack(np.meshgrid(*[np.arange(n) for n in FIXED_SHAPE], indexing="ij")).astype(np.float32)
        d = world_displacement(torch.from_numpy(identity), far, far)
        # the two terms are 1e5 mm each; taken in float32 they would cancel to 1e-2 mm
        assert d.abs().max() < 1e-9

    def test_slabs_do_not_show(self, rng):
        long = torch.from_numpy(rng.random((2, 1500, 1000)))
        affine = np.diag([2.0, 3.0, 1.0, 1.0])
        d = world_displacement(long, affine, np.eye(4))
        grid = np.stack(np.meshgrid(np.arange(1500), np.arange(1000), indexing="ij"))
        np.testing.assert_allclose(d.numpy(), long.numpy() - grid * np.array([2, 3])[:, None, None], atol=1e-9)

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"displacement must be \[3, X, Y, Z\]"):
            voxel_map(torch.zeros(1, 3, 4, 4, 4), FIXED, MOVING)
        with pytest.raises(ValueError, match=r"affine must be \[4, 4\]"):
            voxel_map(torch.zeros(3, 4, 4, 4), np.eye(3), MOVING)
