from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from deqreg import Registration, ops, register

pytest.importorskip("safetensors")


HEAD = Path(__file__).parents[1] / "examples" / "data" / "brain" / "fixed.nii.gz"


def head(step: int) -> nibabel.Nifti1Image:
    """A skull-stripped head at voxels of `step` mm, the one that ships as an example."""
    image = nibabel.load(HEAD)
    assert isinstance(image, nibabel.Nifti1Image)
    return image.slicer[::step, ::step, ::step]


def pushed(image: nibabel.Nifti1Image, millimetres: float) -> nibabel.Nifti1Image:
    """The head with its middle pushed, smoothly."""
    data = torch.from_numpy(image.get_fdata(dtype=np.float32))[None, None]
    edge = float(image.header.get_zooms()[0])
    u = torch.zeros(1, 3, *data.shape[2:])
    u[(0, slice(None), *[n // 2 for n in data.shape[2:]])] = 1.0
    u = ops.gaussian(u, 18 / edge)
    return nibabel.Nifti1Image(ops.warp(data, u * (millimetres / edge / u.max()))[0, 0].numpy(), image.affine)


def error(registration: Registration) -> float:
    """Root mean square difference of the images."""
    return float((registration.fixed.data - registration.warped).square().mean().sqrt())


def test_learned_field_undoes_a_push() -> None:
    moving = head(2)
    fixed = pushed(moving, 6.0)
    found = register(fixed, moving, preset="brain", method="equilibrium", initial="identity")
    still = register(fixed, fixed, preset="brain", method="equilibrium", initial="identity")
    before = float((found.fixed.data - found.moving.data).square().mean().sqrt())
    assert error(found) < 0.5 * before
    assert still.displacement.norm(dim=0).mean() < 0.1 * found.displacement.norm(dim=0).max()
    assert found.levels[0].similarity_after > found.levels[0].similarity_before
    assert found.levels[0].jacobian_range[0] > 0


@pytest.mark.slow
def test_refinement_brings_images_closer_on_the_grid_that_is_finer() -> None:
    moving = head(1)
    fixed = pushed(moving, 6.0)
    learned, refined = (
        register(fixed, moving, preset="brain", method="equilibrium", initial="identity", refine=refine)
        for refine in (False, True)
    )
    assert error(refined) < error(learned)
    assert (len(learned.levels), len(refined.levels)) == (1, 2)
    assert min(refined.levels[1].spacing) < 0.8 * min(refined.levels[0].spacing)


def test_slices_have_no_weights() -> None:
    with pytest.raises(ValueError, match="is 3-D, got 2-D images"):
        register(torch.rand(24, 24), torch.rand(24, 24), preset="brain", method="equilibrium", initial="identity")
