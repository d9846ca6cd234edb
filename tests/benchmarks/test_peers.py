"""Every tool's form of one known transform comes out as the same displacement; the tools need not be installed."""

import json
import sys
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from benchmarks import peers
from deqreg.io import read_displacement
from tests.io.grids import oblique_affine

SHAPE, MOVING_SHAPE = (11, 9, 7), (8, 10, 12)
AFFINE = oblique_affine((1.5, 2.0, 2.5), (0.2, -0.1, 0.3), (10, -20, 300), SHAPE, (-1, 1, -1), (0, 1, 2))
MOVING_AFFINE = oblique_affine((2.0, 1.5, 1.0), (0.0, 0.3, 0.1), (5, -10, 290), MOVING_SHAPE, (1, 1, 1), (1, 0, 2))
# p_moving = W (p + u(p)), RAS millimetres
WORLD = np.array([[1.1, 0.1, 0.0, 3.0], [-0.1, 0.9, 0.05, -4.0], [0.0, 0.02, 1.05, 5.0], [0, 0, 0, 1]])


@pytest.fixture
def u():
    """RAS millimetres, [X, Y, Z, 3], another value in every component of every voxel."""
    return np.random.default_rng(5).normal(0, 3, (*SHAPE, 3)).astype(np.float32)


@pytest.fixture
def job(tmp_path):
    """A function that makes a job out of what the test changes about it."""
    rng = np.random.default_rng(6)
    for name, shape, affine in (("fixed", SHAPE, AFFINE), ("moving", MOVING_SHAPE, MOVING_AFFINE)):
        nib.save(nib.Nifti1Image(rng.random(shape, dtype=np.float32), affine), tmp_path / f"{name}.nii.gz")

    def make(peer, parameters, **changes):
        files = {name: str(tmp_path / f"{name}.nii.gz") for name in ("fixed", "moving", "output")}
        return peers.Job(peer=peer, work=str(tmp_path), parameters=parameters, **files, **changes)

    return make


def total(u, world):
    """p_moving - p, RAS millimetres, voxel by voxel."""
    result = np.empty(u.shape)
    for index in np.ndindex(u.shape[:3]):
        p = AFFINE @ [*index, 1]
        result[index] = (world @ np.add(p, (*u[index], 0)) - p)[:3]
    return result


def check(job, displacement, u, world, tolerance=1e-4):
    """The file that is written holds the transform, for deqreg and for ITK."""
    peers.write_field(job.output, displacement, AFFINE)
    field = read_displacement(job.output)
    expected = total(u, world)
    # float32 on file
    assert np.abs(np.moveaxis(field.displacement.numpy(), 0, -1) - expected).max() < tolerance
    image = sitk.ReadImage(job.output, sitk.sitkVectorFloat64)
    place = image.TransformIndexToPhysicalPoint((3, 4, 5))
    moved = sitk.DisplacementFieldTransform(image).TransformPoint(place)
    assert np.subtract(moved, place) * (-1, -1, 1) == pytest.approx(expected[3, 4, 5], abs=tolerance)


def module(monkeypatch, name, **content):
    """Stand in for a package that is not installed."""
    parts = name.split(".")
    for parent in (".".join(parts[:i]) for i in range(1, len(parts))):
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    found = ModuleType(name)
    vars(found).update(content)
    monkeypatch.setitem(sys.modules, name, found)


def write_itk_field(path, displacement_ras):
    """By ITK itself, as the tools that are built on it do."""
    image = sitk.GetImageFromArray(np.transpose(displacement_ras * (-1, -1, 1), (2, 1, 0, 3)), isVector=True)
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((np.diag([-1, -1, 1]) @ AFFINE[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((AFFINE[:3, 3] * (-1, -1, 1)).tolist())
    sitk.WriteImage(image, path)


class FakeGreedy:
    """Writes a warp in LPS millimetres and an affine map of RAS points, as greedy does."""

    u = None

    def execute(self, command):
        words = command.split()
        target = words[words.index("-o") + 1]
        if "-a" in words:
            np.savetxt(target, WORLD)
        else:
            write_itk_field(target, self.u)


@pytest.mark.parametrize("affine", [False, True])
def test_greedy(monkeypatch, job, u, affine):
    FakeGreedy.u = u
    module(monkeypatch, "picsl_greedy", Greedy3D=FakeGreedy)
    given = job("greedy", {"metric": "SSD", "iterations": "1", "smoothing": "2vox 1vox"}, affine=affine)
    check(given, peers.greedy(given), u, WORLD if affine else np.eye(4))


def test_ants(monkeypatch, job, u, tmp_path):
    composed = str(tmp_path / "composed.nii.gz")
    write_itk_field(composed, total(u, WORLD))

    def apply_transforms(fixed, moving, transforms, compose):
        assert transforms == ["warp", "affine"]
        return composed

    module(
        monkeypatch, "ants", image_read=lambda path: path, apply_transforms=apply_transforms,
        registration=lambda *images, **options: {"fwdtransforms": ["warp", "affine"]},
    )  # fmt: skip
    given = job("ants", {}, affine=True)
    check(given, peers.ants(given), u, WORLD)


def test_elastix(monkeypatch, job, u):
    """ITK's arrays run the other way round."""

    class Maps:
        def __init__(self):
            self.maps = []

        def GetDefaultParameterMap(self, kind):  # noqa: N802
            return {"Transform": [kind], "NumberOfResolutions": ["4"]}

        def AddParameterMap(self, entries):  # noqa: N802
            self.maps.append(entries)

    made = []
    parameter_object = SimpleNamespace(New=lambda: made.append(Maps()) or made[0])
    field = np.transpose(total(u, WORLD) * (-1, -1, 1), (2, 1, 0, 3))
    module(
        monkeypatch, "itk", F="float", UC="byte", imread=lambda path, kind: path, ParameterObject=parameter_object,
        elastix_registration_method=lambda *images, **options: (None, "parameters"),
        transformix_deformation_field=lambda moving, parameters: field, array_view_from_image=lambda image: image,
    )  # fmt: skip
    given = job("elastix", {"bspline": {"FinalGridSpacingInPhysicalUnits": 8}})
    check(given, peers.elastix(given), u, WORLD)
    translation, affine, bspline = made[0].maps
    assert "FinalGridSpacingInPhysicalUnits" not in translation | affine
    assert bspline["FinalGridSpacingInPhysicalUnits"] == ["8"]


@pytest.mark.parametrize("affine", [False, True])
def test_convexadam(monkeypatch, job, u, affine):
    """Voxels of the fixed grid, which was continued to whole blocks."""

    def convex_adam_pt(fixed, moving, grid_sp, **options):
        assert fixed.shape == moving.shape == (12, 12, 12)
        assert options["dtype"] is torch.float32
        voxels = u.astype(np.float64) @ np.linalg.inv(AFFINE[:3, :3]).T
        return np.pad(voxels, [(0, 12 - n) for n in SHAPE] + [(0, 0)], constant_values=99)

    module(monkeypatch, "convexAdam.convex_adam_MIND", convex_adam_pt=convex_adam_pt)
    module(monkeypatch, "picsl_greedy", Greedy3D=FakeGreedy)
    given = job("convexadam", {"grid_sp": 6}, affine=affine)
    check(given, peers.convexadam(given), u, WORLD if affine else np.eye(4))


def test_convexadam_is_given_the_moving_image_where_the_affine_map_puts_it(monkeypatch, job, u):
    """A ramp in the moving world shows where each voxel of the fixed grid was sampled."""
    seen = []

    def convex_adam_pt(fixed, moving, **options):
        seen.append(moving.numpy())
        return np.zeros((*fixed.shape, 3))

    module(monkeypatch, "convexAdam.convex_adam_MIND", convex_adam_pt=convex_adam_pt)
    module(monkeypatch, "picsl_greedy", Greedy3D=FakeGreedy)
    given = job("convexadam", {"grid_sp": 2}, affine=True)
    # a moving grid that holds all of the fixed one, so that nothing is continued past its border
    ends = peers.positions(SHAPE, AFFINE) @ WORLD[:3, :3].T + WORLD[:3, 3]
    low, high = ends.min((0, 1, 2)) - 2, ends.max((0, 1, 2)) + 2
    grid = np.diag([*(high - low) / 15, 1.0])
    grid[:3, 3] = low
    ramp = (peers.positions((16, 16, 16), grid) @ [1.0, 2.0, -3.0]).astype(np.float32)
    nib.save(nib.Nifti1Image(ramp, grid), given.moving)
    peers.convexadam(given)
    sampled = seen[0][tuple(slice(n) for n in SHAPE)]
    # linear interpolation of a ramp is exact; the values are in the thousands, in float32
    assert sampled == pytest.approx(ends @ [1.0, 2.0, -3.0], abs=1e-2)


@pytest.mark.parametrize("affine", [False, True])
def test_dipy(monkeypatch, job, u, affine):
    """RAS millimetres, before the affine map."""

    class Solver:
        def __init__(self, metric, level_iters):
            pass

        def optimize(self, static, moving, static_grid2world, moving_grid2world, prealign):
            assert prealign is (WORLD if affine else None)
            assert np.array_equal(static_grid2world, nib.load(given.fixed).affine)
            return SimpleNamespace(get_forward_field=lambda: u)

    module(monkeypatch, "dipy.align", affine_registration=lambda moving, static, **options: (None, WORLD))
    module(monkeypatch, "dipy.align.imwarp", SymmetricDiffeomorphicRegistration=Solver)
    module(monkeypatch, "dipy.align.metrics", CCMetric=lambda dimensions: None)
    given = job("dipy", {"level_iters": [1]}, affine=affine)
    check(given, peers.dipy(given), u, WORLD if affine else np.eye(4))


def test_flat_outside(tmp_path):
    image, mask = np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.zeros((3, 4, 5), np.uint8)
    mask[1] = 1
    for name, data in (("image", image), ("mask", mask)):
        nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / f"{name}.nii.gz")
    target = peers.flat_outside(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", tmp_path / "flat.nii.gz")
    flat = nib.load(target)
    assert np.array_equal(flat.get_fdata()[1], image[1])
    assert flat.get_fdata()[[0, 2]] == pytest.approx(np.percentile(image[1], 99.9))
    assert flat.affine == pytest.approx(AFFINE, abs=1e-4)


def test_jobs_are_checked(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"peer": "nobody"}))
    with pytest.raises(SystemExit, match="a job names one of greedy, ants"):
        peers.read_job(tmp_path / "job.json")


def test_what_is_installed_is_listed_with_its_versions(monkeypatch):
    def version(name):
        if name != "dipy":
            raise peers.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(peers, "version", version)
    assert peers.installed() == {"dipy": {"dipy": "1.2"}}
