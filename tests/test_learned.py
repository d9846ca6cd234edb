from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from deqreg import Registration, ops, register
from deqreg.learned import Features, _coarser, _encoded
from deqreg.nets import DEQReg
from deqreg.nets.encoder import pad_to_multiple
from deqreg.spatial import Grid

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


def test_what_lies_outside_of_masks_is_nothing() -> None:
    """A head with something around it and a mask is registered as the head alone is."""
    moving = head(2)
    pair = pushed(moving, 6.0), moving
    masks = [nibabel.Nifti1Image((image.get_fdata() > 1).astype(np.uint8), image.affine) for image in pair]
    alone, around = [], []
    for image, mask in zip(pair, masks, strict=True):
        inside, data = np.asarray(mask.dataobj) > 0, image.get_fdata(dtype=np.float32)
        noise = np.random.default_rng(0).uniform(0, data.max(), data.shape).astype(np.float32)
        alone.append(nibabel.Nifti1Image(np.where(inside, data, 0), image.affine))
        around.append(nibabel.Nifti1Image(np.where(inside, data, noise), image.affine))
    options = {"preset": "brain", "method": "equilibrium", "initial": "identity"}
    expected = register(*alone, fixed_mask=masks[0], moving_mask=masks[1], **options)
    found = register(*around, fixed_mask=masks[0], moving_mask=masks[1], **options)
    stripped = register(*alone, **options)
    torch.testing.assert_close(found.displacement, expected.displacement)
    # the intensities' range is of the mask in one and of the foreground in the other
    apart = (found.displacement - stripped.displacement).norm(dim=0)[torch.from_numpy(np.asarray(masks[0].dataobj)) > 0]
    assert apart.mean() < 0.1


def test_features_are_of_the_head_alone() -> None:
    """What is empty around it changes neither them nor where they lie."""
    ball = torch.zeros(1, 1, 24, 20, 22)
    ball[..., 8:15, 7:14, 9:16] = torch.rand(7, 7, 7) + 0.1
    net = DEQReg(channels=4, widths=(4, 4), encoder_stride=2, strides=(2,))
    wide = torch.nn.functional.pad(ball, (4, 6, 0, 2, 6, 0))
    with torch.no_grad():
        near, far = (
            _encoded(net, image, Grid(tuple(image.shape[2:]), torch.eye(4, dtype=torch.float64)))
            for image in (ball, wide)
        )
    assert far.shape[2:] == (15, 11, 16)
    assert torch.equal(far[:, :, 3:, :10, 2:13], near)
    assert near.std() > 0


def test_a_head_of_few_voxels_has_features() -> None:
    """On the coarsest scale one voxel is left of it."""
    net = DEQReg(channels=4, widths=(4, 4, 4, 4, 4), encoder_stride=2, strides=(2,))
    image = torch.zeros(1, 1, 20, 20, 20)
    image[..., 8:12, 8:12, 8:12] = 1.0
    with torch.no_grad():
        features = _encoded(net, image, Grid((20, 20, 20), torch.eye(4, dtype=torch.float64)))
    assert features.shape == (1, 4, 10, 10, 10)
    assert features.isfinite().all()


@pytest.mark.slow
def test_the_order_of_the_voxels_on_file_does_not_matter() -> None:
    """Heads counted from top to bottom and front to back, as sagittal series are, get the field of upright ones."""
    images = pushed(head(2), 6.0), head(2)
    turned = [image.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]])) for image in images]
    assert nibabel.aff2axcodes(turned[0].affine) == ("P", "I", "L")
    upright, other = (
        register(*pair, preset="brain", method="equilibrium", initial="identity") for pair in (images, turned)
    )
    back = other.displacement.permute(0, 3, 1, 2).flip(2, 3)
    assert (back - upright.displacement).norm(dim=0).max() < 0.05 * upright.displacement.norm(dim=0).max()


@pytest.mark.slow
def test_refinement_brings_images_closer_on_the_grid_that_is_finer() -> None:
    moving = head(1)
    fixed = pushed(moving, 6.0)
    learned, refined = (
        register(fixed, moving, preset="brain", method="equilibrium", initial="identity", refine=refine)
        for refine in (False, True)
    )
    assert error(refined) < error(learned)
    assert (len(learned.levels), len(refined.levels)) == (1, 4)
    assert refined.settings["preset"]["levels"] == refined.settings["preset"]["refinement"]
    assert learned.settings["preset"]["levels"] != learned.settings["preset"]["refinement"]
    # the first level of those that follow sees no more than this
    assert refined.levels[0].field_shape < learned.levels[0].field_shape


def test_refined_half_way_the_inverse_comes_out() -> None:
    moving = head(2)
    fixed = pushed(moving, 6.0)
    refined = register(
        fixed, moving, preset="brain", method="equilibrium", initial="identity", refine=True, symmetric=True
    )
    pushed_part = tuple(slice(3 * n // 8, 5 * n // 8) for n in refined.fixed.data.shape)
    after, before = (
        (refined.fixed.data - image)[pushed_part].norm() for image in (refined.warped, refined.moving.data)
    )
    assert after < 0.2 * before
    assert refined.report()["inverse_consistency_mm"]["mean"] < 0.1  # of voxels of 2 mm
    # the learned field is where it starts: the first level begins beyond what the images as they lie have in common
    assert refined.levels[1].similarity_before > refined.levels[0].similarity_before


def test_features_lie_where_their_blocks_of_voxels_do() -> None:
    """A ramp over the world, averaged in blocks and brought back, is what it was away from the faces."""
    world = torch.tensor([[0.0, 2, 0, 5], [1, 0, 0, -3], [0, 0, 3, 7], [0, 0, 0, 1]], dtype=torch.float64)
    grid = Grid((9, 8, 11), world)
    voxels = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid.shape))
    ramp = grid.to_world(voxels).T.reshape(1, 3, *grid.shape).float()
    blocks = torch.nn.functional.avg_pool3d(pad_to_multiple(ramp, 2), 2)
    features = Features(blocks, 2 * blocks, _coarser(grid, 2, 2))
    fixed, moving = features.on(grid)
    inside = (..., *[slice(1, 7)] * 3)
    torch.testing.assert_close(fixed[inside], ramp[inside])
    torch.testing.assert_close(moving[inside], 2 * ramp[inside])


def test_slices_have_no_weights() -> None:
    with pytest.raises(ValueError, match="is 3-D, got 2-D images"):
        register(torch.rand(24, 24), torch.rand(24, 24), preset="brain", method="equilibrium", initial="identity")
