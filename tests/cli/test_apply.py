import nibabel as nib
import numpy as np
import pytest
import torch

from deqreg import io
from deqreg.cli import main


def values(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("pair", ["straight", "turned"])
def test_apply_reproduces_the_warped_image(registered, request, pair, tmp_path):
    folder, out = request.getfixturevalue(pair), getattr(registered, pair)
    target = tmp_path / "warped.nii.gz"
    assert main(["apply", str(out / "displacement.nii.gz"), str(folder / "moving.nii.gz"), "-o", str(target)]) == 0
    # the displacement on file is float32 millimetres; a point on the border may fall to the other side of it
    assert (np.abs(values(target) - values(out / "warped.nii.gz")) > 0.5).mean() < 1e-3
    np.testing.assert_allclose(nib.load(target).affine, nib.load(out / "warped.nii.gz").affine, atol=1e-6)


def test_labels_are_taken_from_the_nearest_voxel(registered, straight, tmp_path):
    target = tmp_path / "labels.nii.gz"
    words = ["apply", registered.straight / "displacement.nii.gz", straight / "moving_mask.nii.gz", "-o", target]
    assert main([*map(str, words), "--interpolation", "nearest"]) == 0
    assert nib.load(target).get_data_dtype() == np.uint8
    assert (values(target) != values(registered.straight / "warped_labels.nii.gz")).mean() < 1e-3


def test_several_images_go_to_a_folder_under_their_names(registered, straight, tmp_path, capsys):
    sources = [str(straight / name) for name in ("moving.nii.gz", "moving_mask.nii.gz")]
    out = tmp_path / "new" / "folder"
    assert main(["apply", str(registered.straight / "displacement.nii.gz"), *sources, "-o", str(out)]) == 0
    assert sorted(entry.name for entry in out.iterdir()) == ["moving.nii.gz", "moving_mask.nii.gz"]
    assert capsys.readouterr().out.split() == [str(out / "moving.nii.gz"), str(out / "moving_mask.nii.gz")]


@pytest.fixture
def shift(tmp_path):
    """A displacement by a voxel of 2 mm along x, and an image that rises along x by 1 a millimetre."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    io.write_displacement(
        tmp_path / "shift.nii.gz", torch.tensor([2.0, 0, 0]).view(3, 1, 1, 1).expand(3, 9, 8, 7), affine
    )
    x = 2 * np.arange(9, dtype=np.float32)[:, None, None] + np.zeros((9, 8, 7), np.float32)
    io.write_volume(tmp_path / "ramp.nii.gz", x, affine)
    return tmp_path


def test_the_displacement_points_from_fixed_to_moving(shift):
    assert (
        main(["apply", str(shift / "shift.nii.gz"), str(shift / "ramp.nii.gz"), "-o", str(shift / "out.nii.gz")]) == 0
    )
    moved = values(shift / "out.nii.gz")
    np.testing.assert_allclose(moved[:8], values(shift / "ramp.nii.gz")[:8] + 2, atol=1e-5)
    np.testing.assert_array_equal(moved[8], 0)  # comes from outside of the moving image


def test_a_reference_gives_the_grid(shift):
    affine = np.diag([1.0, 2.0, 2.0, 1.0])
    affine[0, 3] = 3.0
    io.write_volume(shift / "reference.nii.gz", np.random.default_rng(0).random((6, 8, 7)), affine)
    words = ["apply", shift / "shift.nii.gz", shift / "ramp.nii.gz", "-o", shift / "out.nii.gz"]
    assert main([*map(str, words), "--reference", str(shift / "reference.nii.gz")]) == 0
    moved = values(shift / "out.nii.gz")
    np.testing.assert_allclose(moved[:, 0, 0], 3 + np.arange(6) + 2, atol=1e-5)
    np.testing.assert_allclose(nib.load(shift / "out.nii.gz").affine, affine)


def test_bad_input_is_one_line_and_writes_nothing(shift, one_line):
    field, ramp, out = shift / "shift.nii.gz", shift / "ramp.nii.gz", shift / "out.nii.gz"
    before = sorted(shift.iterdir())
    assert "must have shape (X, Y, Z, 1, 3)" in one_line("apply", ramp, ramp, "-o", out)
    assert "no such file" in one_line("apply", field, shift / "none.nii.gz", "-o", out)
    assert "must be a folder for 2 images" in one_line("apply", field, ramp, ramp, "-o", out)
    assert "must have different names" in one_line("apply", field, ramp, ramp, "-o", shift / "folder")
    assert "in the way" in one_line("apply", field, ramp, "-o", ramp / "out.nii.gz")
    assert sorted(shift.iterdir()) == before


def test_dimensions_have_to_agree(shift, one_line):
    io.write_volume(shift / "flat.nii.gz", np.random.default_rng(0).random((8, 8)), np.eye(4))
    line = one_line("apply", shift / "shift.nii.gz", shift / "flat.nii.gz", "-o", shift / "out.nii.gz")
    assert line.endswith("flat.nii.gz: must be 3-D as the displacement, got 2-D")


def apply(folder, *sources, out="out", more=()):
    return main(["apply", *map(str, (folder / "shift.nii.gz", *sources, "-o", folder / out, *more))])


def test_a_reference_gives_its_grid_whatever_its_values_and_images_need_no_contrast(shift):
    grid, nothing = np.diag([2.0, 2.0, 2.0, 1.0]), np.full((9, 8, 7), np.nan)
    nib.save(nib.Nifti1Image(nothing, grid), shift / "nothing.nii.gz")
    for value in (0, 1):
        io.write_volume(shift / f"{value}.nii.gz", np.full((9, 8, 7), value), grid, dtype=np.uint8)
    more = ["--interpolation", "nearest", "--reference", shift / "nothing.nii.gz"]
    assert apply(shift, shift / "0.nii.gz", shift / "1.nii.gz", more=more) == 0
    assert [int(values(shift / "out" / f"{value}.nii.gz")[:8].mean()) for value in (0, 1)] == [0, 1]


@pytest.mark.parametrize("reference", [False, True])
def test_results_have_the_world_code_of_the_grid_they_take(shift, reference):
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    still = torch.zeros(3, 9, 8, 7)
    io.write_displacement(shift / "shift.nii.gz", still, grid, space=4)
    io.write_volume(shift / "reference.nii.gz", still[0], grid, space=2)
    assert apply(shift, shift / "ramp.nii.gz", more=["--reference", shift / "reference.nii.gz"] * reference) == 0
    assert int(nib.load(shift / "out" / "ramp.nii.gz").header["sform_code"]) == (2 if reference else 4)


@pytest.mark.parametrize("name", ["shift", "ramp", "reference"])
def test_no_input_is_overwritten(shift, one_line, name):
    (shift / "reference.nii.gz").write_bytes((shift / "ramp.nii.gz").read_bytes())
    (shift / "out").mkdir()
    (shift / "out" / "ramp.nii.gz").symlink_to(shift / f"{name}.nii.gz")
    words = ["-o", shift / "out", "--reference", shift / "reference.nii.gz"]
    line = one_line("apply", shift / "shift.nii.gz", shift / "ramp.nii.gz", *words)
    assert line.endswith(f"{shift / 'out' / 'ramp.nii.gz'}: is the input {shift / name}.nii.gz; give another place")


def test_scaled_integers_and_other_formats_become_nifti(shift):
    """Of MOVING in .mgz, and of integers scaled by 0.1, which no integer type holds."""
    ramp = nib.load(shift / "ramp.nii.gz")
    scaled = nib.Nifti1Image(values(shift / "ramp.nii.gz").astype(np.int16), ramp.affine)
    scaled.header.set_slope_inter(0.1, 0)
    nib.save(scaled, shift / "scaled.nii.gz")
    nib.save(nib.MGHImage(values(shift / "ramp.nii.gz"), ramp.affine), shift / "free.mgz")
    assert apply(shift, shift / "free.mgz", shift / "scaled.nii.gz", more=["--interpolation", "nearest"]) == 0
    free, tenth = (nib.load(shift / "out" / f"{name}.nii.gz") for name in ("free", "scaled"))
    assert tenth.get_data_dtype() == np.float32
    np.testing.assert_allclose(tenth.get_fdata(), free.get_fdata() / 10, atol=1e-6)


def test_all_images_are_written_or_none(shift, monkeypatch):
    (shift / "other.nii.gz").write_bytes((shift / "ramp.nii.gz").read_bytes())
    write = io.write_volume

    def fail(path, *args, **options):
        if path.name == "other.nii.gz":
            raise OSError(28, "No space left on device", str(path))
        write(path, *args, **options)

    monkeypatch.setattr(io, "write_volume", fail)
    before = sorted(shift.iterdir())
    assert apply(shift, shift / "ramp.nii.gz", shift / "other.nii.gz") == 2
    assert sorted(shift.iterdir()) == before


def test_labels_that_float32_rounds_are_refused(shift, tmp_path, capsys):
    atlas = np.full((9, 8, 7), 312782546, np.uint32)
    nib.save(nib.Nifti1Image(atlas, np.diag([2.0, 2.0, 2.0, 1.0])), shift / "atlas.nii.gz")
    words = ["apply", shift / "shift.nii.gz", shift / "atlas.nii.gz", "-o", tmp_path / "out.nii.gz"]
    assert main([*map(str, words), "--interpolation", "nearest"]) == 2
    assert "labels must be below 2^24" in capsys.readouterr().err
    assert not (tmp_path / "out.nii.gz").exists()


def test_values_that_are_large_by_their_scale_are_no_labels(shift, tmp_path):
    scaled = nib.Nifti1Image(np.full((9, 8, 7), 3, np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    scaled.header.set_slope_inter(2**24, 0)
    nib.save(scaled, shift / "scaled.nii.gz")
    words = ["apply", shift / "shift.nii.gz", shift / "scaled.nii.gz", "-o", tmp_path / "out.nii.gz"]
    assert main([*map(str, words), "--interpolation", "nearest"]) == 0
    assert nib.load(tmp_path / "out.nii.gz").get_fdata().max() == 3 * 2**24
