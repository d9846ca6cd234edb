"""The lung pair at a quarter of its resolution, as it lies and in another orientation, and a registration of each."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from deqreg import io
from deqreg.cli import main
from tests.io.grids import rotation

LUNG = Path(__file__).resolve().parents[2] / "examples" / "data" / "lung"
NAMES = [f"{role}{kind}.nii.gz" for role in ("fixed", "moving") for kind in ("", "_mask")]


def coarse(name, steps=(4, 4, 2)):
    """Mean intensity, or the share inside, over blocks of voxels: array and affine."""
    image = nib.load(LUNG / name)
    array = np.asarray(image.dataobj, dtype=np.float32)
    array = array[tuple(slice(0, n - n % step) for n, step in zip(array.shape, steps, strict=True))]
    blocks = array.reshape([part for n, step in zip(array.shape, steps, strict=True) for part in (n // step, step)])
    voxels = np.diag([*steps, 1.0])
    voxels[:3, 3] = (np.array(steps) - 1) / 2
    return blocks.mean(axis=(1, 3, 5)), image.affine @ voxels


def save(path, array, affine, mask):
    array = (array > 0.5).astype(np.uint8) if mask else np.rint(array).astype(np.int16)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)


def turn(role):
    """How the pair of `turned` lies in the scanner: the two differ by some degrees."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation((0.25, -0.2, 0.3) if role == "fixed" else (0.2, -0.25, 0.35))
    return matrix


def fitted():
    """The affine map that fits the landmarks best, so that no test waits for one to be found."""
    fixed, moving = (io.read_landmarks(LUNG / f"{role}_landmarks.csv").numpy() for role in ("fixed", "moving"))
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(np.c_[fixed, np.ones(len(fixed))], moving, rcond=None)[0].T
    return matrix


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """A folder with the pair, its masks, its landmarks and an affine start."""
    folder = tmp_path_factory.mktemp("straight")
    for name in NAMES:
        save(folder / name, *coarse(name), mask="mask" in name)
    for name in ("fixed_landmarks.csv", "moving_landmarks.csv"):
        shutil.copy(LUNG / name, folder / name)
    io.write_affine(folder / "start.tfm", fitted())
    return folder


@pytest.fixture(scope="session")
def turned(tmp_path_factory):
    """The pair on oblique, anisotropic grids whose axes run to L, P and I, each turned differently in the scanner."""
    folder = tmp_path_factory.mktemp("turned")
    for name in NAMES:
        array, affine = coarse(name, (3, 6, 2))
        flip = np.eye(4)  # from L, P, S to L, P, I
        flip[2, 2], flip[2, 3] = -1, array.shape[2] - 1
        save(
            folder / name,
            array[:, :, ::-1],
            turn(name.split("_")[0].split(".")[0]) @ affine @ flip,
            mask="mask" in name,
        )
    assert nib.aff2axcodes(nib.load(folder / "fixed.nii.gz").affine) == ("L", "P", "I")
    io.write_affine(folder / "start.tfm", turn("moving") @ fitted() @ np.linalg.inv(turn("fixed")))
    return folder


@pytest.fixture(scope="session")
def flat(tmp_path_factory):
    """A small 2-D pair, for what does not depend on the images."""
    folder = tmp_path_factory.mktemp("flat")
    x, y = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 28), indexing="ij")
    for role, shift in (("fixed", 0.0), ("moving", 0.08)):
        array = np.where((x - shift) ** 2 + y**2 < 0.6, 100 + 50 * np.sin(9 * (x - shift)) * np.cos(7 * y), 0)
        save(folder / f"{role}.nii.gz", array, np.diag([2.0, 2.0, 2.0, 1.0]), mask=False)
    return folder


def register_flat(folder, out, *more):
    """Run the command on the small pair."""
    words = ["register", folder / "fixed.nii.gz", folder / "moving.nii.gz", "-o", out, "--initial", "identity", *more]
    return main([str(word) for word in words])


def register(folder, out, *more):
    """Run the command on a folder's pair with its masks and its start."""
    masks = [f"--{role}-mask={folder / f'{role}_mask.nii.gz'}" for role in ("fixed", "moving")]
    words = [folder / "fixed.nii.gz", folder / "moving.nii.gz", "-o", out, "--initial", folder / "start.tfm", *masks]
    return main(["register", *map(str, words), *more])


@pytest.fixture(scope="session")
def registered(straight, turned, tmp_path_factory):
    """The output folder of each pair's registration; the straight one with labels (its masks) and landmarks."""
    out = tmp_path_factory.mktemp("registered")
    labels = [f"--{role}-labels={straight / f'{role}_mask.nii.gz'}" for role in ("fixed", "moving")]
    landmarks = [f"--{role}-landmarks={straight / f'{role}_landmarks.csv'}" for role in ("fixed", "moving")]
    assert register(straight, out / "straight", *labels, *landmarks) == 0
    assert register(turned, out / "turned") == 0
    return SimpleNamespace(straight=out / "straight", turned=out / "turned")


@pytest.fixture
def one_line(capsys):
    """Run a command that has to fail as bad input does: exit code 2 and one line on stderr, which is returned."""

    def run(*words):
        code = main([str(word) for word in words])
        streams = capsys.readouterr()
        assert code == 2, streams.err
        assert streams.out == ""
        lines = streams.err.splitlines()
        assert len(lines) == 1, streams.err
        assert lines[0].startswith(f"deqreg {words[0]}: ")
        return lines[0]

    return run
