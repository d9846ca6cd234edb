import gzip
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch

from deqreg.io import Volume, read_grid, read_image, read_labels, read_mask, read_volume, write_volume
from tests.io.grids import oblique_affine

SHAPE = (6, 7, 5)
OBLIQUE = oblique_affine((0.8, 1.2, 3.1), (0.3, -0.5, 0.2), (40, -80, 1200), SHAPE, (-1, 1, -1), (2, 0, 1))


def save(path, array, affine=None, header=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine, header), path)
    return path


@pytest.fixture
def image(rng):
    return Volume(torch.from_numpy(rng.random(SHAPE, np.float32)), OBLIQUE, name="fixed image")


class TestReading:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_values_and_geometry_as_nibabel_gives_them(self, tmp_path, rng, dtype, suffix):
        array = (rng.random(SHAPE) * 200).astype(dtype)
        path = save(tmp_path / f"image{suffix}", array, OBLIQUE)
        volume = read_image(path)
        assert volume.dtype == dtype
        assert volume.data.is_contiguous()
        np.testing.assert_array_equal(volume.data.numpy(), array.astype(np.float32))
        np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
        assert volume.spacing == pytest.approx([0.8, 1.2, 3.1], rel=1e-6)

    def test_scaled_integers_are_unscaled(self, tmp_path, rng):
        stored = nib.Nifti1Image(rng.random(SHAPE) * 3000 - 1000, OBLIQUE)
        stored.set_data_dtype(np.int16)
        nib.save(stored, tmp_path / "scaled.nii.gz")
        loaded = nib.load(tmp_path / "scaled.nii.gz")
        assert float(loaded.dataobj.slope) != 1
        # the product is taken in float32 here and in float64 by nibabel
        np.testing.assert_allclose(read_image(loaded).data.numpy(), loaded.get_fdata(), rtol=1e-6, atol=1e-3)

    def test_big_endian_and_nifti2_and_mgh(self, tmp_path, rng):
        array = (rng.random(SHAPE) * 99).astype(np.float32)
        big = nib.Nifti1Image(array.astype(">f4"), OBLIQUE, nib.Nifti1Header(endianness=">"))
        for name, stored in {
            "big.nii.gz": big,
            "two.nii.gz": nib.Nifti2Image(array, OBLIQUE),
            "free.mgz": nib.MGHImage(array, OBLIQUE.astype(np.float32)),
        }.items():
            nib.save(stored, tmp_path / name)
            volume = read_image(tmp_path / name)
            np.testing.assert_array_equal(volume.data.numpy(), array)
            # headers keep float32 affines
            np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-3)
            assert volume.dtype == np.float32

    def test_a_path_an_open_image_and_a_volume_are_the_same(self, tmp_path, rng):
        path = save(tmp_path / "image.nii.gz", rng.random(SHAPE, np.float32), OBLIQUE)
        volume = read_image(str(path), "fixed image")
        assert torch.equal(read_image(nib.load(path)).data, volume.data)
        assert read_image(volume) is volume
        assert volume.name == f"fixed image {path}"

    def test_a_trailing_singleton_axis_is_dropped(self, tmp_path, rng):
        array = rng.random(SHAPE, np.float32)
        assert torch.equal(
            read_image(save(tmp_path / "t.nii.gz", array[..., None])).data,
            read_image(save(tmp_path / "s.nii.gz", array)).data,
        )

    @pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 1, 1)])
    def test_two_dimensional_images(self, tmp_path, rng, shape):
        array = rng.random(shape, np.float32)
        volume = read_image(save(tmp_path / "slice.nii.gz", array, np.diag([2.0, 3.0, 1.0, 1.0])))
        assert tuple(volume.data.shape) == (6, 7)
        assert volume.matrix.tolist() == [[2, 0, 0], [0, 3, 0], [0, 0, 1]]

    def test_the_world_code_comes_from_the_sform_else_the_qform(self, tmp_path, rng):
        stored = nib.Nifti1Image(rng.random(SHAPE, np.float32), OBLIQUE)
        stored.set_sform(OBLIQUE, 4)
        assert read_image(stored).space == 4
        stored.set_sform(None, 0)
        stored.set_qform(OBLIQUE, 2)
        assert read_image(stored).space == 2

    @pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("unknown", 1), ("micron", 1e-3), ("meter", 1e3)])
    def test_units_become_millimetres_as_in_itk(self, tmp_path, rng, unit, factor):
        stored = nib.Nifti1Image(rng.random(SHAPE, np.float32), np.diag([2.0, 3.0, 4.0, 1.0]))
        stored.header.set_xyzt_units(unit)
        nib.save(stored, tmp_path / "image.nii.gz")
        volume = read_image(tmp_path / "image.nii.gz")
        assert volume.spacing == pytest.approx(np.array([2, 3, 4]) * factor)
        assert SimpleITK.ReadImage(tmp_path / "image.nii.gz").GetSpacing() == pytest.approx(tuple(volume.spacing))

    def test_a_header_without_orientation_warns(self, tmp_path, rng):
        stored = nib.Nifti1Image(rng.random(SHAPE, np.float32), None)
        nib.save(stored, tmp_path / "image.nii.gz")
        with pytest.warns(UserWarning, match="no orientation"):
            read_image(tmp_path / "image.nii.gz")

    def test_qform_and_sform_that_disagree_warn_and_the_sform_wins(self, rng):
        stored = nib.Nifti1Image(rng.random(SHAPE, np.float32), np.eye(4))
        stored.set_sform(OBLIQUE, 2)
        stored.set_qform(np.eye(4), 1)
        with pytest.warns(UserWarning, match="qform and sform disagree"):
            volume = read_image(stored)
        np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-3)

    def test_a_qform_that_is_no_rotation_warns_where_the_sform_is_fine(self, tmp_path, rng):
        stored = nib.Nifti1Image(rng.random(SHAPE, np.float32), OBLIQUE)
        stored.set_qform(OBLIQUE, 1)
        content = bytearray(stored.to_bytes())
        content[256:264] = np.array([0.9, 0.9], "<f4").tobytes()  # quatern_b and quatern_c
        (tmp_path / "image.nii").write_bytes(content)
        with pytest.warns(UserWarning, match="qform and sform disagree"):
            volume = read_image(tmp_path / "image.nii")
        np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-3)

    def test_ordinary_headers_do_not_warn(self, tmp_path, rng):
        write_volume(tmp_path / "image.nii.gz", rng.random(SHAPE, np.float32), OBLIQUE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_image(tmp_path / "image.nii.gz")


def good_bytes():
    noise = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    return nib.Nifti1Image(noise, np.eye(4)).to_bytes()


def header_field(start, dtype, *values):
    content = bytearray(good_bytes())
    content[start : start + np.dtype(dtype).itemsize * len(values)] = np.array(values, dtype).tobytes()
    return bytes(content)


def flipped_bit():
    content = bytearray(gzip.compress(good_bytes()))
    content[len(content) // 2] ^= 0x10
    return bytes(content)


UNREADABLE = {
    "text named nii.gz": ("x.nii.gz", b"hello\n" * 200, "not a gzip file"),
    "text named nii": ("x.nii", b"hello\n" * 200, "not a NIfTI volume"),
    "compressed text": ("x.nii.gz", gzip.compress(b"hello\n" * 200), "not a NIfTI volume"),
    "short compressed text": ("x.nii.gz", gzip.compress(b"hello"), "not a NIfTI volume"),
    "nothing, nii.gz": ("x.nii.gz", b"", "not a gzip file"),
    "nothing, nii": ("x.nii", b"", "not a NIfTI volume"),
    "another format": ("x.png", b"\x89PNG\r\n", "not a NIfTI volume"),
    "nifti without gzip": ("x.nii.gz", good_bytes(), "not a gzip file"),
    "cut in the data": ("x.nii.gz", gzip.compress(good_bytes())[:9000], "cut off or damaged"),
    "cut in the checksum": ("x.nii.gz", gzip.compress(good_bytes())[:-3], "cut off or damaged"),
    "cut in the header": ("x.nii.gz", gzip.compress(good_bytes())[:60], "cut off or damaged"),
    "whole gzip of cut data": ("x.nii.gz", gzip.compress(good_bytes()[:9000]), "cut off or damaged"),
    "cut nii": ("x.nii", good_bytes()[:9000], "cut off or damaged"),
    "cut nii header": ("x.nii", good_bytes()[:200], "not a NIfTI volume"),
    "a flipped bit": ("x.nii.gz", flipped_bit(), "cut off or damaged"),
    "an impossible size": ("x.nii", header_field(42, "<i2", 32000, 32000, 32000), "cut off or damaged"),
    "a negative size": ("x.nii", header_field(42, "<i2", -3), "cut off or damaged"),
    "an unknown type": ("x.nii", header_field(70, "<i2", 9999), "not a NIfTI volume"),
    "an unknown type, gz": ("x.nii.gz", gzip.compress(header_field(70, "<i2", 9999)), "not a NIfTI volume"),
}


def rgb():
    return np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


def with_value(value):
    array = np.random.default_rng(0).random(SHAPE, np.float32)
    array[1, 2, 3] = value
    return array


RAMP = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
UNUSABLE = {
    "4-D": (np.stack([RAMP] * 3, -1), np.eye(4), r"is a series of shape \[6, 7, 5, 3\]; give one 3-D volume"),
    "vector": (np.zeros((6, 7, 5, 1, 3), np.float32), np.eye(4), r"is a vector field of shape \[6, 7, 5, 1, 3\]"),
    "1-D": (np.arange(9, dtype=np.float32), np.eye(4), r"must have shape \(X, Y, Z\) or \(X, Y\), got \[9\]"),
    "thin": (RAMP[:, :3], np.eye(4), r"at least 4 voxels along each axis, got \[6, 3, 5\]"),
    "RGB": (rgb(), np.eye(4), r"colour values \(R, G, B\)"),
    "complex": (RAMP.astype(np.complex64), np.eye(4), "complex values"),
    "constant": (np.full(SHAPE, 3, np.int16), np.eye(4), "constant, every voxel is 3"),
    "NaN": (with_value(np.nan), np.eye(4), "1 of 210 voxels are NaN or infinite"),
    "infinite": (with_value(-np.inf), np.eye(4), "1 of 210 voxels are NaN or infinite"),
    "slice across x-y": (RAMP[0], np.eye(4)[[0, 2, 1, 3]], "2-D image must lie in the world's x-y plane"),
    "singular affine": (RAMP, np.diag([1.0, 0, 1, 1]), "singular affine"),
    "parallel axes": (RAMP, np.eye(4)[:, [0, 0, 2, 3]], "singular affine"),
    "NaN affine": (RAMP, np.diag([np.nan, 1, 1, 1]), "its affine has NaN"),
}


def check_message(error, path):
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"fixed image {path}: ")


class TestBadInput:
    @pytest.mark.parametrize("case", UNREADABLE)
    def test_files_that_cannot_be_read(self, tmp_path, case):
        name, content, said = UNREADABLE[case]
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said) as error:
            read_image(path, "fixed image")
        check_message(error, path)

    @pytest.mark.parametrize("case", UNUSABLE)
    def test_images_that_cannot_be_used(self, tmp_path, case):
        array, affine, said = UNUSABLE[case]
        path = tmp_path / "x.nii.gz"
        stored = nib.Nifti1Image(array, np.eye(4))
        stored.header.set_sform(affine, 1)  # set_sform on the image would refuse a bad affine
        path.write_bytes(gzip.compress(nib.Nifti1Image(array, None, stored.header).to_bytes()))
        with pytest.raises(ValueError, match=said) as error:
            read_image(path, "fixed image")
        check_message(error, path)

    def test_values_do_not_matter_to_a_grid_nor_contrast_to_a_volume(self):
        grid = read_grid(nib.Nifti1Image(np.full(SHAPE, np.nan), OBLIQUE))
        assert (tuple(grid.data.shape), grid.affine.tolist()) == (SHAPE, OBLIQUE.tolist())
        assert not read_volume(nib.Nifti1Image(np.zeros(SHAPE), OBLIQUE)).data.any()
        with pytest.raises(ValueError, match="is a series of shape"):
            read_grid(nib.Nifti1Image(np.zeros((*SHAPE, 2)), OBLIQUE))
        with pytest.raises(ValueError, match="1 of 210 voxels are NaN"):
            read_volume(nib.Nifti1Image(with_value(np.nan), OBLIQUE))

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(ValueError, match="no such file") as error:
            read_image(tmp_path / "none.nii.gz", "fixed image")
        check_message(error, tmp_path / "none.nii.gz")
        with pytest.raises(ValueError, match=r"is a folder; give one NIfTI file") as error:
            read_image(tmp_path, "fixed image")
        check_message(error, tmp_path)

    def test_an_object_that_is_no_image(self):
        with pytest.raises(ValueError, match=r"fixed image: must be a NIfTI volume .*, got ndarray"):
            read_image(np.zeros(SHAPE), "fixed image")

    def test_a_volume_is_checked_as_a_file_is(self):
        with pytest.raises(ValueError, match="constant"):
            read_image(Volume(torch.zeros(SHAPE), np.eye(4)))
        with pytest.raises(ValueError, match=r"data must be \[X, Y, Z\] or \[X, Y\] float32, got \[4\]"):
            Volume(torch.zeros(4), np.eye(4))
        with pytest.raises(ValueError, match="float64"):
            Volume(torch.zeros(SHAPE, dtype=torch.float64), np.eye(4))
        with pytest.raises(ValueError, match=r"affine must be \[4, 4\], got \[3, 3\]"):
            Volume(torch.zeros(SHAPE), np.eye(3))
        with pytest.raises(ValueError, match="moving image: affine must be of finite numbers"):
            Volume(torch.zeros(SHAPE), np.full((4, 4), np.nan), name="moving image")
        with pytest.raises(ValueError, match="moving image: affine must be invertible"):
            Volume(torch.zeros(SHAPE), np.diag([1.0, 1.0, 0.0, 1.0]), name="moving image")

    def test_nibabel_logs_nothing_beside_the_error(self, tmp_path, caplog):
        (tmp_path / "x.nii").write_bytes(header_field(70, "<i2", 9999))
        with pytest.raises(ValueError, match="not a NIfTI volume"):
            read_image(tmp_path / "x.nii")
        assert caplog.records == []
        with pytest.raises(nib.spatialimages.HeaderDataError):
            nib.load(tmp_path / "x.nii")
        assert "data code 9999" in caplog.text  # nibabel's log is as it was

    def test_reading_in_several_threads_leaves_nibabels_log_as_it_was(self, tmp_path, caplog):
        (tmp_path / "x.nii").write_bytes(header_field(70, "<i2", 9999))

        def read(_):
            with pytest.raises(ValueError, match="not a NIfTI volume"):
                read_image(tmp_path / "x.nii")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(100)))
        assert caplog.records == []
        with pytest.raises(nib.spatialimages.HeaderDataError):
            nib.load(tmp_path / "x.nii")
        assert "data code 9999" in caplog.text


class TestMasksAndLabels:
    def test_a_mask_is_what_is_above_zero(self, tmp_path, image):
        array = np.zeros(SHAPE, np.float32)
        array[1], array[2], array[3] = 0.2, 7, -1
        mask = read_mask(save(tmp_path / "m.nii.gz", array, OBLIQUE), image)
        assert sorted(mask.data.unique().tolist()) == [0, 1]
        assert mask.data[1].all()
        assert mask.data[2].all()
        assert not mask.data[3].any()

    @pytest.mark.parametrize("read", [read_mask, read_labels])
    def test_another_grid(self, tmp_path, image, read):
        ones = np.ones(SHAPE, np.uint8)
        with pytest.raises(ValueError, match=r"must have the grid of fixed image, \[6, 7, 5\] voxels, got \[6, 7, 6\]"):
            read(save(tmp_path / "m.nii.gz", np.ones((6, 7, 6), np.uint8), OBLIQUE), image)
        shifted = OBLIQUE.copy()
        shifted[1, 3] += 0.5
        with pytest.raises(ValueError, match=r"affine of fixed image, but they differ by 0.5 in row 2, column 4"):
            read(save(tmp_path / "m.nii.gz", ones, shifted), image)
        shifted[1, 3] = OBLIQUE[1, 3] + 5e-4  # headers are float32: a difference this small means nothing
        read(save(tmp_path / "m.nii.gz", ones, shifted), image)

    def test_another_grid_of_micrometres(self, image):
        microscope = Volume(image.data, np.diag([5e-4, 5e-4, 5e-4, 1.0]))
        twice = Volume(torch.ones(SHAPE), np.diag([1e-3, 1e-3, 1e-3, 1.0]))
        with pytest.raises(ValueError, match="must have the affine of"):
            read_mask(twice, microscope)

    @pytest.mark.parametrize("read", [read_mask, read_labels])
    def test_empty_and_not_finite(self, tmp_path, image, read):
        with pytest.raises(ValueError, match="empty, no"):
            read(save(tmp_path / "m.nii.gz", np.zeros(SHAPE, np.uint8), OBLIQUE), image)
        with pytest.raises(ValueError, match="1 of 210 voxels are NaN"):
            read(save(tmp_path / "m.nii.gz", with_value(np.nan), OBLIQUE), image)

    def test_a_mask_of_the_outermost_voxels_alone(self, tmp_path, image):
        array = np.zeros(SHAPE, np.uint8)
        array[0] = 1
        with pytest.raises(
            ValueError, match="no voxel above zero off the border of its grid; give a mask of the region"
        ):
            read_mask(save(tmp_path / "m.nii.gz", array, OBLIQUE), image)

    def test_labels_must_be_integers_that_float32_holds(self, tmp_path, image):
        with pytest.raises(ValueError, match=r"must be integers, got 0\.5; resample"):
            read_labels(save(tmp_path / "l.nii.gz", np.full(SHAPE, 0.5, np.float32), OBLIQUE), image)
        with pytest.raises(ValueError, match=r"below 2\^24, got 16777216"):
            read_labels(save(tmp_path / "l.nii.gz", np.full(SHAPE, 2**24, np.int32), OBLIQUE), image)
        largest = read_labels(save(tmp_path / "l.nii.gz", np.full(SHAPE, 2**24 - 1, np.int32), OBLIQUE), image)
        assert largest.data.unique().tolist() == [2**24 - 1]


class TestWriting:
    def test_a_large_file_is_one_file_to_others(self, tmp_path, rng, threads):
        volume = rng.random((120, 110, 200), np.float32)  # more than one thread compresses
        volume[..., 100:] = 0  # its first part is stored as it is, its last is not
        contents = []
        for count in (1, 3):
            torch.set_num_threads(count)
            write_volume(tmp_path / "large.nii.gz", volume, np.eye(4))
            contents.append((tmp_path / "large.nii.gz").read_bytes())
        assert contents[0] == contents[1]
        assert 2**22 < len(contents[0]) < volume[..., :100].nbytes
        np.testing.assert_array_equal(nib.load(tmp_path / "large.nii.gz").get_fdata(dtype=np.float32), volume)
        read = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "large.nii.gz")))
        np.testing.assert_array_equal(read.T, volume)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_itk_and_nibabel_find_the_same_grid(self, tmp_path, rng, suffix):
        path = tmp_path / f"w{suffix}"
        array = rng.random(SHAPE, np.float32)
        write_volume(path, torch.from_numpy(array), OBLIQUE, space=4)
        loaded, header = nib.load(path), nib.load(path).header
        np.testing.assert_allclose(loaded.affine, OBLIQUE, atol=1e-4)  # float32 at 1200 mm
        np.testing.assert_allclose(loaded.get_qform(), OBLIQUE, atol=1e-3)
        assert (int(header["qform_code"]), int(header["sform_code"])) == (4, 4)
        assert header.get_xyzt_units()[0] == "mm"
        in_itk = SimpleITK.ReadImage(path)
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(in_itk).T, array)
        corner = np.array([5, 6, 4])
        lps = in_itk.TransformIndexToPhysicalPoint(corner.tolist())
        np.testing.assert_allclose(np.array(lps) * [-1, -1, 1], (OBLIQUE @ [*corner, 1])[:3], atol=1e-3)

    def test_two_dimensions(self, tmp_path, rng):
        affine = np.diag([-2.0, 3.0, 1.0, 1.0])
        affine[:2, 3] = 10, -20
        write_volume(tmp_path / "w.nii.gz", rng.random((6, 7), np.float32), affine)
        in_itk = SimpleITK.ReadImage(tmp_path / "w.nii.gz")
        assert in_itk.GetDimension() == 2
        assert np.array(in_itk.TransformIndexToPhysicalPoint((5, 6))) == pytest.approx([0, 2])
        np.testing.assert_allclose(read_image(tmp_path / "w.nii.gz").affine, affine)

    @pytest.mark.parametrize(
        ("dtype", "top", "written"),
        [
            (np.uint8, 200, np.uint8),
            (np.int16, 2000, np.int16),
            (np.uint8, 300, np.int32),
            (np.int64, 5, np.int32),
            (np.float32, 5, np.float32),
        ],
    )
    def test_labels_keep_their_type_where_it_holds_them(self, tmp_path, dtype, top, written):
        labels = torch.zeros(SHAPE)
        labels[2] = top
        write_volume(tmp_path / "l.nii.gz", labels, OBLIQUE, dtype=dtype)
        loaded = nib.load(tmp_path / "l.nii.gz")
        assert loaded.get_data_dtype() == written
        np.testing.assert_array_equal(np.asanyarray(loaded.dataobj), labels.numpy())

    def test_a_sheared_grid_has_no_qform_so_that_itk_refuses_it(self, tmp_path, rng):
        sheared = np.eye(4)
        sheared[0, 1] = 0.3
        write_volume(tmp_path / "s.nii.gz", rng.random(SHAPE, np.float32), sheared)
        np.testing.assert_allclose(read_image(tmp_path / "s.nii.gz").affine, sheared)
        with pytest.raises(RuntimeError, match="orthonormal"):
            SimpleITK.ReadImage(tmp_path / "s.nii.gz")

    def test_what_cannot_be_written(self, tmp_path):
        with pytest.raises(ValueError, match=r"must end in \.nii or \.nii\.gz"):
            write_volume(tmp_path / "w.mha", torch.zeros(SHAPE), np.eye(4))
        with pytest.raises(ValueError, match=r"data must be \[X, Y, Z\] or \[X, Y\], got \[1, 6, 7, 5\]"):
            write_volume(tmp_path / "w.nii", torch.zeros(1, *SHAPE), np.eye(4))
        with pytest.raises(ValueError, match=r"must be integers to be written as uint8, got 0\.5"):
            write_volume(tmp_path / "w.nii", torch.full(SHAPE, 0.5), np.eye(4), dtype=np.uint8)
        with pytest.raises(FileNotFoundError):
            write_volume(tmp_path / "none" / "w.nii", torch.zeros(SHAPE), np.eye(4))
        assert os.listdir(tmp_path) == []
