from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import deqreg
from deqreg import io, metrics
from deqreg.presets import read_preset
from deqreg.symmetric import square_root
from tests.spatial.test_affine import blobs, known
from tests.spatial.test_grid import oblique
from tests.test_register import DATA, pair


@pytest.mark.parametrize("shape", [(48, 44), (32, 30, 36)])
@pytest.mark.parametrize("initial", ["identity", "auto"])
def test_exchanging_the_images_exchanges_displacement_and_inverse(shape: tuple[int, ...], initial: str) -> None:
    fixed, moving, truth = pair(*shape)
    there = deqreg.register(fixed, moving, symmetric=True, initial=initial)
    back = deqreg.register(moving, fixed, symmetric=True, initial=initial)
    assert there.inverse is not None and back.inverse is not None  # noqa: PT018
    # the update is exchanged to the bit; the order of the solver's sums is not, and steps that have not converged
    # make something of that
    torch.testing.assert_close(back.inverse, there.displacement, atol=0.05, rtol=0)
    torch.testing.assert_close(there.inverse, back.displacement, atol=0.05, rtol=0)
    inside = (truth.norm(dim=0) > 0.5).float()
    before = metrics.endpoint_error(torch.zeros_like(truth), truth, inside)["mean"]
    assert metrics.endpoint_error(there.displacement, truth, inside)["mean"] < 0.2 * before
    consistency = there.report()["inverse_consistency_mm"]
    assert consistency["mean"] < 0.02  # of voxels of 1 mm, on fields of 2 mm voxels
    assert consistency["p99"] < 0.1


def test_grids_and_affine_maps_are_honoured(tmp_path: Path) -> None:
    grid, world = oblique((36, 34, 30)), known(3)
    fixed = io.Volume(blobs(grid)[0, 0], grid.affine.numpy())
    voxels = np.diag([-1.0, 1.0, 1.0, 1.0])  # the moving image is stored the other way about, far away and turned
    voxels[0, 3] = 35
    moving = io.Volume(fixed.data.flip(0), world.numpy() @ grid.affine.numpy() @ voxels)
    found = deqreg.register(fixed, moving, initial=world.numpy(), symmetric=True)
    torch.testing.assert_close(found.warped, fixed.data, atol=0.03, rtol=0)
    deqreg.save(found, tmp_path)
    inverse = io.read_displacement(tmp_path / "inverse_displacement.nii.gz")
    assert inverse.displacement.shape[1:] == moving.data.shape
    np.testing.assert_allclose(inverse.affine, moving.affine, atol=1e-3)
    centre = torch.from_numpy(moving.affine) @ torch.tensor([18.0, 17, 15, 1]).double()
    expected = torch.linalg.inv(world) @ centre - centre
    torch.testing.assert_close(inverse.displacement[:, 18, 17, 15].double(), expected[:3], atol=0.2, rtol=0)


def test_square_roots_of_maps() -> None:
    half, back = square_root(known(3))
    torch.testing.assert_close(half @ half, known(3))
    torch.testing.assert_close(half @ back, torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="neither mirrors nor turns by half a circle"):
        square_root(torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)))
    with pytest.raises(ValueError, match="neither mirrors nor turns by half a circle"):
        square_root(torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64)))


def test_errors_state_the_contract(tmp_path: Path) -> None:
    fixed, moving, truth = pair(32, 30, 36)
    with pytest.raises(ValueError, match="with method equilibrium it needs refine"):
        deqreg.register(fixed, moving, method="equilibrium", symmetric=True)
    io.write_displacement(tmp_path / "d.nii.gz", truth, np.eye(4))
    with pytest.raises(ValueError, match="symmetric registration starts from an affine map"):
        deqreg.register(fixed, moving, initial=tmp_path / "d.nii.gz", symmetric=True)
    with pytest.raises(ValueError, match="needs masks of both images or of none, got that of moving alone"):
        deqreg.register(fixed, moving, moving_mask=torch.ones_like(moving), symmetric=True)


def test_coarse_levels_half_way_lead_to_the_same_field() -> None:
    grid, world = oblique((36, 34, 30)), known(3)
    fixed = io.Volume(blobs(grid)[0, 0], grid.affine.numpy())
    moving = io.Volume(fixed.data.clone(), world.numpy() @ grid.affine.numpy())
    preset = replace(read_preset("generic"), half_way=3)
    # known(3) but for a shift of 2 mm, which is left to the field
    nearly = world.numpy().copy()
    nearly[0, 3] += 2
    found = deqreg.register(fixed, moving, initial=nearly, preset=preset)
    assert found.settings["half_way"] == 3
    assert found.inverse is None
    assert [level.field_shape[0] for level in found.levels] == sorted(level.field_shape[0] for level in found.levels)
    torch.testing.assert_close(found.warped, fixed.data, atol=0.05, rtol=0)


def test_what_belongs_to_one_grid_keeps_the_coarse_levels_on_it(tmp_path: Path) -> None:
    fixed, moving, truth = pair(32, 30, 36)
    io.write_displacement(tmp_path / "d.nii.gz", truth / 2, np.eye(4))
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = 31
    points = torch.tensor([[16.0, 15, 18]])
    one_sided, half_way = (replace(read_preset("generic"), half_way=count) for count in (0, 3))
    for given in (
        {"fixed_mask": torch.ones_like(fixed)},
        {"initial": tmp_path / "d.nii.gz"},
        {"initial": mirror},
        {"fixed_landmarks": points, "moving_landmarks": points + 1, "use_landmarks": True},
    ):
        found, expected = (
            deqreg.register(fixed, moving, preset=preset, **{"initial": "identity", **given})
            for preset in (half_way, one_sided)
        )
        assert found.settings["half_way"] == 0
        assert torch.equal(found.displacement, expected.displacement)


def test_a_budget_may_leave_only_levels_half_way() -> None:
    fixed, moving, truth = pair(48, 44, 40)
    preset = replace(read_preset("generic"), half_way=3)
    found = deqreg.register(fixed, moving, preset=preset, initial="identity", memory_budget=6 * 2**20)
    assert 0 < len(found.levels) == found.settings["half_way"]
    assert found.displacement.shape == truth.shape
    inside = (truth.norm(dim=0) > 0.5).float()
    before = metrics.endpoint_error(torch.zeros_like(truth), truth, inside)["mean"]
    assert metrics.endpoint_error(found.displacement, truth, inside)["mean"] < 0.5 * before


def test_descriptors_of_the_preset_pull_half_way_too() -> None:
    fixed, moving, _ = pair(32, 30, 36)
    lung = read_preset("lung")
    with_descriptors, without = (
        deqreg.register(fixed, moving, preset=preset, symmetric=True, initial="identity").displacement
        for preset in (lung, replace(lung, self_similarity=0))
    )
    # ten times what the rounding of sums leaves between two runs' paths to the equilibrium
    assert (with_descriptors - without).abs().max() > 0.1


@pytest.mark.slow
def test_a_brain_and_its_pair_exchanged() -> None:
    """The demo's heads at 2 mm: one way and the other are each other's inverse."""
    images = []
    for name in ("fixed", "moving"):
        image = nib.load(DATA / "brain" / f"{name}.nii.gz")
        affine = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
        images.append(io.Volume(torch.from_numpy(np.asarray(image.dataobj, np.float32)[::2, ::2, ::2].copy()), affine))
    there, back = (
        deqreg.register(*order, symmetric=True, initial="identity", preset="brain") for order in (images, images[::-1])
    )
    assert there.inverse is not None
    assert back.inverse is not None
    # of 2 mm voxels; what rounding becomes in steps that end before they converge
    assert (back.inverse - there.displacement).norm(dim=0).mean() < 0.05
    assert there.report()["inverse_consistency_mm"]["mean"] < 0.2
    assert there.report()["verdict"] == "plausible"
