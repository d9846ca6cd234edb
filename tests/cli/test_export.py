import re

import nibabel as nib
import numpy as np
import pytest
import torch

from deqreg import io, ops
from deqreg.cli import main
from tests.io.grids import oblique_affine


@pytest.fixture
def pair(tmp_path):
    """A displacement on a flipped, turned grid, a moving image of other voxels, and an affine map."""
    grid = oblique_affine((1.0, 2.0, 3.0), (0.2, -0.1, 0.3), (10.0, -20.0, 300.0), (20, 18, 16), flips=(1, 1, -1))
    moving = oblique_affine((2.0, 1.0, 3.0), (0.1, 0.1, 0.2), (12.0, -18.0, 310.0), (12, 30, 16))
    smooth = 8 * ops.gaussian(torch.randn(1, 3, 20, 18, 16), 3.0)[0] + torch.tensor([2.0, 2.0, 10.0]).view(3, 1, 1, 1)
    io.write_displacement(tmp_path / "d.nii.gz", smooth, grid)
    io.write_volume(tmp_path / "fixed.nii.gz", np.random.default_rng(0).random((20, 18, 16)), grid)
    io.write_volume(tmp_path / "moving.nii.gz", np.random.default_rng(0).random((12, 30, 16)), moving)
    io.write_affine(tmp_path / "a.tfm", np.array([[0.9, -0.1, 0, 5], [0.1, 1, 0, 2], [0, 0, 1.1, 1], [0, 0, 0, 1]]))
    return tmp_path


def parameters(path):
    """An elastix file's entries as lists of words."""
    return {key: words.split() for key, words in re.findall(r"^\((\w+) (.*)\)$", path.read_text(), flags=re.MULTILINE)}


def test_learn2reg_voxels_sample_the_moving_array(pair):
    """By SciPy's map_coordinates, as the challenge's evaluation does, what `deqreg apply` gives."""
    ndimage = pytest.importorskip("scipy.ndimage")
    words = [str(pair / "d.nii.gz"), "--format", "learn2reg", "--reference", str(pair / "moving.nii.gz")]
    assert main(["export", *words, "-o", str(pair / "disp.nii.gz")]) == 0
    assert main(["apply", str(pair / "d.nii.gz"), str(pair / "moving.nii.gz"), "-o", str(pair / "warped.nii.gz")]) == 0
    disp = np.moveaxis(nib.load(pair / "disp.nii.gz").get_fdata(), -1, 0)
    where = disp + np.indices(disp.shape[1:])
    moving, warped = (nib.load(pair / name).get_fdata() for name in ("moving.nii.gz", "warped.nii.gz"))
    inside = np.all([(w > 0) & (w < n - 1) for w, n in zip(where, moving.shape, strict=True)], axis=0)
    assert inside.mean() > 0.2
    sampled = ndimage.map_coordinates(moving, where, order=1)
    np.testing.assert_allclose(sampled[inside], warped[inside], atol=1e-4)


def test_learn2reg_has_the_world_code_of_the_displacement(pair):
    field = io.read_displacement(pair / "d.nii.gz")
    io.write_displacement(pair / "d.nii.gz", field.displacement, field.affine, space=4)
    nib.save(nib.Nifti1Image(np.full((4, 5, 6), np.nan), np.eye(4)), pair / "moving.nii.gz")  # its grid alone matters
    words = [str(pair / "d.nii.gz"), "--format", "learn2reg", "--reference", str(pair / "moving.nii.gz")]
    assert main(["export", *words, "-o", str(pair / "disp.nii.gz")]) == 0
    assert int(nib.load(pair / "disp.nii.gz").header["sform_code"]) == 4


def test_elastix_takes_the_displacement_and_its_grid(pair):
    assert main(["export", str(pair / "d.nii.gz"), "--format", "elastix", "-o", str(pair / "t.txt")]) == 0
    found = parameters(pair / "t.txt")
    assert found["Transform"] == ['"DeformationFieldTransform"']
    assert found["DeformationFieldFileName"] == [f'"{pair / "d.nii.gz"}"']
    affine = nib.load(pair / "fixed.nii.gz").affine
    assert found["Size"] == ["20", "18", "16"]
    np.testing.assert_allclose([float(w) for w in found["Spacing"]], [1, 2, 3], atol=1e-5)
    np.testing.assert_allclose([float(w) for w in found["Origin"]], affine[:3, 3] * [-1, -1, 1], atol=1e-3)
    direction = np.array([float(w) for w in found["Direction"]]).reshape(3, 3)  # a row an axis
    np.testing.assert_allclose(direction, (np.diag([-1, -1, 1]) @ affine[:3, :3] / [1, 2, 3]).T, atol=1e-5)


def test_affine_maps_for_elastix_and_greedy(pair):
    matrix = io.read_affine(pair / "a.tfm")
    words = ["export", str(pair / "a.tfm"), "--format"]
    assert main([*words, "elastix", "--reference", str(pair / "fixed.nii.gz"), "-o", str(pair / "t.txt")]) == 0
    numbers = [float(w) for w in parameters(pair / "t.txt")["TransformParameters"]]
    lps = np.diag([-1.0, -1, 1, 1]) @ matrix @ np.diag([-1.0, -1, 1, 1])
    np.testing.assert_allclose(numbers, [*lps[:3, :3].ravel(), *lps[:3, 3]])
    assert main([*words, "greedy", "-o", str(pair / "a.mat")]) == 0
    np.testing.assert_allclose(np.loadtxt(pair / "a.mat"), matrix)


def test_bad_input_is_one_line_and_writes_nothing(pair, one_line):
    d, a, out = pair / "d.nii.gz", pair / "a.tfm", pair / "o.txt"
    before = sorted(pair.iterdir())
    assert "for elastix needs --reference" in one_line("export", a, "--format", "elastix", "-o", out)
    line = one_line("export", d, "--format", "elastix", "-o", out, "--reference", pair / "fixed.nii.gz")
    assert "--reference is for affine transforms" in line
    assert "must be affine; greedy reads displacements" in one_line("export", d, "--format", "greedy", "-o", out)
    assert "belongs to no grid" in one_line("export", a, "--format", "greedy", "-o", out, "--reference", d)
    line = one_line("export", a, "--format", "learn2reg", "-o", pair / "o.nii.gz")
    assert "must be a displacement, got the matrix" in line
    assert "-o must end in .nii or .nii.gz" in one_line("export", d, "--format", "learn2reg", "-o", out)
    assert sorted(pair.iterdir()) == before
