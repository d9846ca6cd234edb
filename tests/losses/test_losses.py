"""The losses: what they are at places where it is known, their gradients, and what they refuse."""

import pytest
import torch
from torch.nn import functional

from deqreg import losses, ops


def field(*shape, size=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(2, len(shape), *shape, dtype=torch.float64, generator=generator)


def parcels(*shape, labels=5, seed=0):
    return torch.randint(0, labels, (2, *shape), generator=torch.Generator().manual_seed(seed))


def images(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 2, 1, *shape, dtype=torch.float64, generator=generator).unbind(0)


def one_hot_dice(displacement, fixed, moving, labels):
    """The formula with a map a label, warped by the operator."""
    maps = [functional.one_hot(part, labels).movedim(-1, 1).to(displacement) for part in (fixed, moving)]
    warped = ops.warp(maps[1], displacement)
    both, f, w = ((part).flatten(2).sum(2) for part in (maps[0] * warped, maps[0], warped))
    counted = (f > 0) & (maps[1].flatten(2).sum(2) > 0)
    counted[:, 0] = False
    scores = 2 * both / (f + w)
    return torch.stack([1 - row[keep].mean() for row, keep in zip(scores, counted, strict=True)])


@pytest.mark.parametrize("shape", [(7, 6), (5, 6, 4), (5, 1, 4)])
@pytest.mark.parametrize("size", [0.4, 3.0])  # the larger one leaves the grid
def test_soft_dice_is_that_of_warped_one_hot_maps(shape, size):
    u, fixed, moving = field(*shape, size=size).requires_grad_(), parcels(*shape), parcels(*shape, seed=1)
    found, expected = losses.soft_dice(u, fixed, moving, 5), one_hot_dice(u, fixed, moving, 5)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value.sum(), u)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_soft_dice_passes_gradcheck():
    u, fixed, moving = field(4, 5, 3).requires_grad_(), parcels(4, 5, 3), parcels(4, 5, 3, seed=1)
    assert torch.autograd.gradcheck(lambda u: losses.soft_dice(u, fixed, moving, 5), u)


def test_a_second_derivative_of_soft_dice_raises():
    u, fixed, moving = field(6, 5).requires_grad_(), parcels(6, 5), parcels(6, 5, seed=1)
    # beside a loss that has one, its own would be missing in silence
    loss = losses.soft_dice(u, fixed, moving, 5).sum() + u.pow(3).sum()
    with pytest.raises(RuntimeError, match="soft_dice has no second derivative"):
        torch.autograd.grad(loss, u, create_graph=True)


def test_soft_dice_counts_labels_in_both_images_alone():
    fixed, moving = torch.tensor([[[1, 1, 2, 2]]]), torch.tensor([[[1, 1, 3, 3]]])
    still = torch.zeros(1, 2, 1, 4)
    assert losses.soft_dice(still, fixed, moving, 4).tolist() == [0.0]
    assert losses.soft_dice(still, fixed, fixed + 2, 5).tolist() == [0.0]  # none in common


def test_soft_dice_of_a_field_that_is_no_number_is_none():
    u = torch.full((1, 2, 4, 5), float("nan"), requires_grad=True)
    labels = torch.ones(1, 4, 5, dtype=torch.uint8)
    loss = losses.soft_dice(u, labels, labels, 2)
    loss.sum().backward()
    assert loss.isnan().all()


@pytest.mark.slow
def test_soft_dice_is_exact_over_many_voxels():
    # 2^25 equal weights of 1 in float32 would stop adding up at 2^24
    labels = torch.ones(1, 2**13, 2**12, dtype=torch.int8)
    labels[:, :, 0] = 0
    assert losses.soft_dice(torch.zeros(1, 2, 2**13, 2**12), labels, labels, 2).abs().item() < 1e-6


@pytest.mark.parametrize(
    ("fixed", "message"),
    [(torch.zeros(1, 4, 5, dtype=torch.int64), "fixed_labels must be"), (torch.full((1, 4, 4), 5), "in 0 ... 3"),
     (torch.zeros(1, 4, 4), "integers")],
)  # fmt: skip
def test_soft_dice_refuses(fixed, message):
    with pytest.raises(ValueError, match=message):
        losses.soft_dice(torch.zeros(1, 2, 4, 4), fixed, torch.zeros(1, 4, 4, dtype=torch.int64), 4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda u: losses.diffusion(u, (1.0, 2.0, 1.5)),
        lambda u: losses.folding(u, 1.0),
        lambda u: losses.endpoint_error(u, field(4, 5, 3, seed=1)),
        lambda u: losses.landmarks(
            u, 2 * field(4, 5, 3, seed=2)[:, :, :2, 0, 0].mT + 1, torch.ones(2, 2, 3), (1, 2, 3)
        ),
        lambda u: losses.lncc(images(4, 5, 3)[0], ops.warp(images(4, 5, 3)[1], u), window=3),
        lambda u: losses.mse(
            images(4, 5, 3)[0], ops.warp(images(4, 5, 3)[1], u), mask=parcels(4, 5, 3, labels=2)[:, None]
        ),
    ],
    ids=["diffusion", "folding", "endpoint_error", "landmarks", "lncc", "mse"],
)
def test_gradients(loss):
    # displacements below half a voxel from an odd offset stay clear of the kinks of linear interpolation
    u = (0.4 * torch.rand(2, 3, 4, 5, 3, dtype=torch.float64) + 0.05).requires_grad_()
    assert loss(u).shape == (2,)
    assert torch.autograd.gradcheck(loss, u)


def test_equal_images_are_stationary():
    fixed = images(6, 7, 5)[0]
    warped = fixed.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.lncc(fixed, warped, window=3).sum(), warped)
    assert gradient.abs().max() < 1e-9


def test_diffusion_means_the_same_on_any_grid():
    x = torch.linspace(0, 1, 33, dtype=torch.float64)
    fine = torch.stack([torch.sin(3 * x)[:, None].expand(33, 33), torch.cos(2 * x)[None].expand(33, 33)])[None]
    coarse = fine[:, :, ::2, :] * torch.tensor([0.5, 1]).view(1, 2, 1, 1)  # the same in voxels twice as long
    # forward differences of steps of 1/32 and 1/16 of a smooth function differ in second order of the step
    torch.testing.assert_close(
        losses.diffusion(32 * fine, (1, 1)), losses.diffusion(32 * coarse, (2, 1)), rtol=5e-3, atol=0
    )


def test_folding_is_zero_for_the_identity():
    assert losses.folding(torch.zeros(1, 3, 4, 4, 4), 0.5).item() == 0


def test_masks_leave_out():
    fixed, warped = images(5, 6)
    mask = torch.zeros(2, 1, 5, 6)
    mask[0, :, 1:3] = 1
    found = losses.mse(fixed, warped, mask=mask)
    torch.testing.assert_close(found[0], (fixed - warped)[0, :, 1:3].square().mean())
    assert found[1] == 0
    u, truth = field(5, 6), field(5, 6, seed=1)
    expected = (u - truth)[0, :, 1:3].norm(dim=0).mean()
    found = losses.endpoint_error(u, truth, mask)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-3)  # what the loss's docstring grants
    assert found[1] == 0


def test_landmarks_are_interpolated_and_held_constant_outside():
    u = torch.zeros(1, 2, 4, 5, dtype=torch.float64)
    u[:, 0] = torch.arange(4.0)[:, None]
    points = torch.tensor([[[0.5, 1.0], [2.25, 3.5], [9.0, 0.0]]], dtype=torch.float64)
    moved = points + torch.tensor([[[0.5, 0.0], [2.25, 0.0], [3.0, 4.0]]], dtype=torch.float64)
    found = losses.landmarks(u, points, moved)
    torch.testing.assert_close(found, torch.tensor([4.0 / 3], dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.mse(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5)),
        lambda: losses.mse(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), mask=torch.zeros(1, 4, 4)),
        lambda: losses.diffusion(torch.zeros(1, 3, 4, 4)),
        lambda: losses.diffusion(torch.zeros(1, 2, 4, 4), (1, 1, 1)),
        lambda: losses.endpoint_error(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5)),
        lambda: losses.landmarks(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)),
        lambda: losses.landmarks(torch.zeros(1, 2, 4, 4), torch.zeros(1, 0, 2), torch.zeros(1, 0, 2)),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ValueError, match=r"must (be|have)"):
        call()
