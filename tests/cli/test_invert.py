import nibabel as nib
import numpy as np
import pytest
import torch

from deqreg import io, ops
from deqreg.cli import main


def values(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def bent(tmp_path):
    """A smooth displacement on an anisotropic, turned grid, and a moving image of other voxels beside it."""
    grid = np.diag([1.0, 2.0, 3.0, 1.0])
    grid[:2, :2] = [[0.8, -1.2], [0.6, 1.6]]
    grid[:3, 3] = 10.0, -20.0, 30.0
    io.write_displacement(tmp_path / "d.nii.gz", 8 * ops.gaussian(torch.randn(1, 3, 24, 20, 16), 3.0)[0], grid)
    moving = grid @ np.diag([2.0, 1.0, 0.5, 1.0])
    io.write_volume(tmp_path / "moving.nii.gz", np.random.default_rng(0).random((12, 20, 32)), moving)
    io.write_affine(tmp_path / "a.tfm", np.array([[0.0, -1, 0, 5], [1, 0, 0, 2], [0, 0, 2, 1], [0, 0, 0, 1]]))
    return tmp_path


def test_images_come_back_with_the_inverse(registered, straight, tmp_path):
    """An image of the fixed world's coordinate, brought onto the moving grid and back, tells where its voxels went."""
    fixed, there = io.read_image(straight / "fixed.nii.gz"), registered.straight / "displacement.nii.gz"
    back, ramp, once, twice = (tmp_path / f"{name}.nii.gz" for name in ("back", "ramp", "once", "twice"))
    x = np.arange(fixed.data.shape[0], dtype=np.float32)[:, None, None] + np.ones(fixed.data.shape, np.float32)
    io.write_volume(ramp, x, fixed.affine)
    assert main(["invert", str(there), "--reference", str(straight / "moving.nii.gz"), "-o", str(back)]) == 0
    assert main(["apply", str(back), str(ramp), "-o", str(once)]) == 0
    assert main(["apply", str(there), str(once), "-o", str(twice)]) == 0
    error = np.abs(values(twice) - x)[io.read_image(straight / "fixed_mask.nii.gz").data > 0]
    # in voxels: what linear interpolation of the inverse costs on a field that bends as much as this one
    assert np.median(error) < 0.05
    assert np.median(np.abs(values(once)[tuple(map(slice, x.shape))] - x[tuple(map(slice, values(once).shape))])) > 0.5


@pytest.mark.parametrize(
    ("command", "written", "words"),
    [
        ("invert", "d.nii.gz", ["d.nii.gz", "--reference", "moving.nii.gz"]),
        ("invert", "moving.nii.gz", ["d.nii.gz", "--reference", "moving.nii.gz"]),
        ("invert", "a.tfm", ["a.tfm"]),
        ("points", "p.csv", ["d.nii.gz", "p.csv"]),
        ("export", "d.nii.gz", ["d.nii.gz", "--format", "learn2reg"]),
        ("export", "moving.nii.gz", ["d.nii.gz", "--format", "learn2reg", "--reference", "moving.nii.gz"]),
    ],
)
def test_no_input_is_overwritten(bent, one_line, command, written, words):
    (bent / "p.csv").write_text("x,y,z\n10,-20,30\n")
    target, before = bent / written, (bent / written).read_bytes()
    files = [bent / word if (bent / word).exists() else word for word in words]
    assert one_line(command, *files, "-o", target).endswith(f"-o {target}: is the input {target}; give another place")
    assert target.read_bytes() == before


def test_points_go_there_and_back(bent):
    inside = io.read_displacement(bent / "d.nii.gz").affine @ np.array([[9.0, 9, 9, 1], [12, 8, 6, 1]]).T
    io.write_landmarks(bent / "p.csv", inside[:3].T)
    for transform in ("d.nii.gz", "a.tfm"):
        words = ["points", str(bent / transform)]
        assert main([*words, str(bent / "p.csv"), "-o", str(bent / "q.csv")]) == 0
        assert main([*words, str(bent / "q.csv"), "-o", str(bent / "back.csv"), "--inverse"]) == 0
        there, back = io.read_landmarks(bent / "q.csv"), io.read_landmarks(bent / "back.csv")
        np.testing.assert_allclose(back, inside[:3].T, atol=1e-3)  # the files have four decimals
        assert (there - back).norm(dim=1).min() > 0.1


def test_points_follow_the_landmarks(registered, straight, tmp_path):
    words = ["points", registered.straight / "displacement.nii.gz", straight / "fixed_landmarks.csv"]
    assert main([*map(str, words), "-o", str(tmp_path / "moved.csv")]) == 0
    truth, moved = (io.read_landmarks(f) for f in (straight / "moving_landmarks.csv", tmp_path / "moved.csv"))
    assert (moved - truth).norm(dim=1).median() < 3.0  # a third of a coarse voxel; 34 mm before


def test_the_inverse_of_a_matrix_is_a_matrix(bent):
    assert main(["invert", str(bent / "a.tfm"), "-o", str(bent / "new" / "b.tfm")]) == 0
    product = io.read_affine(bent / "a.tfm") @ io.read_affine(bent / "new" / "b.tfm")
    np.testing.assert_allclose(product, np.eye(4), atol=1e-12)


def test_the_grid_of_a_constant_reference_is_taken(bent):
    io.write_volume(bent / "moving.nii.gz", torch.full((4, 5, 6), float("nan")), np.eye(4))
    words = [str(bent / "d.nii.gz"), "--reference", str(bent / "moving.nii.gz"), "-o", str(bent / "back.nii.gz")]
    assert main(["invert", *words]) == 0
    assert nib.load(bent / "back.nii.gz").shape == (4, 5, 6, 1, 3)


def test_bad_input_is_one_line_and_writes_nothing(bent, one_line):
    d, a, moving = bent / "d.nii.gz", bent / "a.tfm", bent / "moving.nii.gz"
    io.write_landmarks(bent / "far.csv", np.array([[999.0, 0, 0]]))
    io.write_landmarks(bent / "flat.csv", np.array([[1.0, 0]]))
    before = sorted(bent.iterdir())
    assert "needs --reference, whose grid it takes" in one_line("invert", d, "-o", bent / "o.nii.gz")
    assert "needs no --reference" in one_line("invert", a, "-o", bent / "o.tfm", "--reference", moving)
    assert "-o must end in .nii or .nii.gz" in one_line("invert", d, "--reference", moving, "-o", bent / "o.tfm")
    assert "-o must end in .tfm or .txt" in one_line("invert", a, "-o", bent / "o.nii.gz")
    assert "-o must end in .csv" in one_line("points", d, bent / "far.csv", "-o", bent / "o.txt")
    assert "1 of 1 points lie outside the displacement" in one_line("points", d, bent / "far.csv", "-o", bent / "o.csv")
    line = one_line("points", d, bent / "far.csv", "-o", bent / "o.csv", "--inverse")
    assert "far.csv, in the fixed image: 1 of 1 points lie outside" in line
    assert "must be 3-D as the transform, got 2-D" in one_line("points", a, bent / "flat.csv", "-o", bent / "o.csv")
    assert sorted(bent.iterdir()) == before
