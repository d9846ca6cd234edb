from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.equilibrium import Anderson, Picard, fixed_point
from deqreg.nets import Lncc, MeanSquares, Variational, VariationalUpdate
from deqreg.spatial import sample


def texture(*shape: int, seed: int = 0) -> Tensor:
    """An image with structure at the scale of the similarity's window, in [0, 1]."""
    noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    smooth = ops.gaussian(noise, 1.5)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def bump(*shape: int, height: float = 1.5) -> Tensor:
    """A smooth displacement that vanishes towards the faces."""
    u = torch.zeros(1, len(shape), *shape)
    u[(0, slice(None), *[n // 2 for n in shape])] = 1.0
    u = ops.gaussian(u, min(shape) / 6)
    return u * (height / u.max())


@pytest.mark.parametrize("shape", [(40, 36), (26, 24, 28)])
@pytest.mark.parametrize("similarity", [Lncc(), MeanSquares()])
def test_equilibrium_undoes_a_known_deformation(shape: tuple[int, ...], similarity: Lncc | MeanSquares) -> None:
    moving, truth = texture(*shape), bump(*shape)
    update = VariationalUpdate(ops.warp(moving, truth), moving, Variational(similarity=similarity))
    zero = torch.zeros_like(truth)
    u = fixed_point(update, zero, solver=Anderson(max_steps=60, tol=1e-3, norm="rms")).value
    assert isinstance(u, Tensor)
    inside = truth.norm(dim=1) > 0.5
    # regularisation shrinks the answer: most of it must be found, none of it folded
    assert (u - truth).norm(dim=1)[inside].mean() < 0.4 * truth.norm(dim=1)[inside].mean()
    assert ops.jacobian_determinant(u).min() > 0


def test_equal_images_stay() -> None:
    image = texture(24, 20, 22)
    update = VariationalUpdate(image, image, Variational())
    # nothing but rounding pulls
    assert update(torch.zeros(1, 3, 24, 20, 22)).abs().max() < 1e-3


def test_contrast_does_not_matter_to_local_correlation() -> None:
    moving, truth = texture(40, 36), bump(40, 36)
    fixed, zero = ops.warp(moving, truth), torch.zeros(1, 2, 40, 36)
    steps = [
        VariationalUpdate(f, moving, Variational(similarity=Lncc(epsilon=1e-6)))(zero) for f in (fixed, 1 - 0.5 * fixed)
    ]
    torch.testing.assert_close(steps[0], steps[1], atol=0.02, rtol=0)


def test_residual_falls_and_anderson_needs_fewer_steps() -> None:
    moving, truth = texture(26, 24, 28), bump(26, 24, 28)
    update = VariationalUpdate(ops.warp(moving, truth), moving, Variational())
    zero, tol = torch.zeros_like(truth), 2e-3
    picard = fixed_point(update, zero, solver=Picard(max_steps=300, tol=tol, norm="rms"))
    anderson = fixed_point(update, zero, solver=Anderson(max_steps=300, tol=tol, norm="rms"))
    assert picard.converged
    assert anderson.converged
    assert int(anderson.steps) < 0.7 * int(picard.steps)


def test_no_step_is_longer_than_allowed() -> None:
    image = texture(30, 30)
    update = VariationalUpdate(image, image.roll(3, 2), Variational(step=1e4, longest_step=0.2))
    length = update.step(torch.zeros(1, 2, 30, 30)).norm(dim=1)
    assert 0.15 < length.max() <= 0.2 + 1e-6


def test_thick_slices_move_by_as_many_millimetres() -> None:
    moving = texture(48, 48)
    fixed = moving.roll(1, 3)
    thin = VariationalUpdate(fixed, moving, Variational(), spacing=(1.0, 1.0))
    thick = VariationalUpdate(fixed, moving, Variational(), spacing=(3.0, 1.0))
    forces = [update.force(torch.zeros(1, 2, 48, 48)) for update in (thin, thick)]
    # the same pull per voxel is a third per millimetre along the thick axis, and smoothed over a third of the voxels
    assert forces[1][:, 0].abs().mean() < 0.7 * forces[0][:, 0].abs().mean()


@pytest.mark.parametrize("shape", [(40, 36), (27, 24, 29)])
def test_a_coarser_field_undoes_a_smooth_deformation_as_well(shape: tuple[int, ...]) -> None:
    moving, truth = texture(*shape), bump(*shape)
    half = [(n + 1) // 2 for n in shape]
    update = VariationalUpdate(ops.warp(moving, truth), moving, Variational(smooth_field=0.25), field=half)
    solution = fixed_point(
        update, torch.zeros(1, len(shape), *half), solver=Anderson(max_steps=60, tol=1e-3, norm="rms")
    )
    assert isinstance(solution.value, Tensor)
    assert solution.value.shape == (1, len(shape), *half)
    found = update.on_image(solution.value)
    inside = truth.norm(dim=1) > 0.5
    assert (found - truth).norm(dim=1)[inside].mean() < 0.4 * truth.norm(dim=1)[inside].mean()


def test_the_force_on_a_coarser_field_is_the_gradient_by_it() -> None:
    fixed, moving = texture(21, 18), texture(21, 18, seed=1)
    update = VariationalUpdate(fixed, moving, Variational(smooth_update=0.0, longest_step=0.25), field=(11, 9))
    # away from grid points, where linear interpolation has a corner
    u = torch.rand(1, 2, 11, 9, generator=torch.Generator().manual_seed(2)) * 0.3 + 0.1
    direction = torch.randn(1, 2, 11, 9, generator=torch.Generator().manual_seed(3))
    step = 2e-3
    sides = []
    for sign in (1, -1):
        update.force(u + sign * step * direction)
        sides.append(update.similarity.double().clone())
    slope = (sides[0] - sides[1]) / (2 * step) * fixed.numel()
    # the force is per image voxel, and a mean over the image's voxels: undo both
    voxels = torch.tensor([21 / 11, 18 / 9]).view(1, 2, 1, 1)
    expected = (update.force(u) * direction * voxels).double().sum() * (21 / 11) * (18 / 9)
    torch.testing.assert_close(expected, slope[0], rtol=0.02, atol=0)  # float32 values of the similarity


def test_a_wider_moving_image_lets_the_outside_be_pulled_in() -> None:
    wide, inset = texture(48, 40), torch.tensor([[1.0, 0, 4], [0, 1, 4]])
    truth = torch.zeros(1, 2, 40, 32)
    truth[:, 0] = -2.0  # the fixed image shows what lies two voxels past its own first face in the moving one
    fixed = ops.warp(wide, truth, affine=inset[None])
    update = VariationalUpdate(fixed, wide, Variational(), affine=inset)
    assert torch.equal(update.sampled(update.on_image(truth)), fixed)


def test_the_force_through_an_affine_map_is_the_gradient_by_the_displacement() -> None:
    moving, turn = texture(20, 24), torch.tensor([[0.9, 0.3, 1.0], [-0.2, 1.1, 2.0]])
    fixed = ops.warp(texture(20, 24, seed=1), torch.zeros(1, 2, 16, 18))
    update = VariationalUpdate(fixed, moving, Variational(smooth_update=0.0, longest_step=0.25), affine=turn)
    u = torch.rand(1, 2, 16, 18).mul_(0.3).requires_grad_()
    warped = ops.warp(moving, u, affine=turn[None])
    _, by_image = update.method.similarity.value_and_gradient(fixed, warped.detach(), None)
    (expected,) = torch.autograd.grad(warped, u, by_image)
    torch.testing.assert_close(update.force(u.detach()), expected)


def test_voxels_of_the_moving_image_may_lie_in_any_direction() -> None:
    moving, truth = texture(40, 36), bump(40, 36)
    sharp = Variational(smooth_update=0.0)
    plain = VariationalUpdate(ops.warp(moving, truth), moving, sharp)
    turned = moving.flip(2).mT.contiguous()  # moving[i, j] is turned[j, 39 - i]
    other = VariationalUpdate(plain.fixed, turned, sharp, affine=torch.tensor([[0.0, 1, 0], [-1, 0, 39]]))
    # on a voxel the slope is that to the next one, which is another one when the image is turned round
    off_voxels = truth / 2 + 0.3
    forces = [update.force(off_voxels)[..., 2:-2, 2:-2] for update in (other, plain)]
    torch.testing.assert_close(*forces, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("similarity", [Lncc(), MeanSquares()])
def test_an_empty_mask_has_no_similarity_and_no_pull(similarity: Lncc | MeanSquares) -> None:
    image, mask = texture(12, 12), torch.zeros(1, 1, 12, 12)
    value, gradient = similarity.value_and_gradient(image, image.roll(2, 3), mask)
    assert value.tolist() == [0]
    assert not gradient.any()


def test_masked_voxels_do_not_pull() -> None:
    image, mask = texture(30, 30), torch.zeros(1, 1, 30, 30)
    mask[..., :10, :] = 1
    update = VariationalUpdate(image, image.roll(2, 3), Variational(smooth_update=1.0), mask=mask)
    force = update.force(torch.zeros(1, 2, 30, 30))
    assert force[:, :, :8].abs().max() > 0.01
    assert force[:, :, 14:].abs().max() == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lncc(window=4), "window must be odd and at least 3, got 4"),
        (lambda: Lncc(epsilon=0), "epsilon must be positive, got 0"),
        (lambda: MeanSquares(weight=-1), "weight must be positive, got -1"),
        (lambda: Variational(step=0), "step must be positive, got 0"),
        (lambda: Variational(longest_step=3), "longest_step must be below"),
        (lambda: Variational(smooth_field=-1), "smooth_field must be in"),
        (
            lambda: VariationalUpdate(texture(8, 8), texture(8, 8), Variational(), field=(4, 4, 4)),
            r"field must be 2 sizes, got \[4, 4, 4\]",
        ),
        (
            lambda: VariationalUpdate(texture(8, 8), texture(9, 8), Variational()),
            r"moving must be \[1, 1, 8, 8\] without an affine map, got \[1, 1, 9, 8\]",
        ),
        (
            lambda: VariationalUpdate(texture(8, 8), texture(9, 8), Variational(), affine=torch.eye(3)),
            r"affine must be \[2, 3\], got \[3, 3\]",
        ),
    ],
)
def test_errors_state_the_contract(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_features_pull_where_images_do_not() -> None:
    shape = (32, 30)
    features, truth = torch.cat([texture(*shape, seed=s) for s in range(3)], dim=1), bump(*shape)
    flat = torch.zeros(1, 1, *shape)
    update = VariationalUpdate(flat, flat, Variational(guidance=50.0), features=(ops.warp(features, truth), features))
    u = fixed_point(update, torch.zeros_like(truth), solver=Anderson(max_steps=60, tol=1e-3, norm="rms")).value
    assert isinstance(u, Tensor)
    inside = truth.norm(dim=1) > 0.5
    # the bound of the test with images: most of the deformation is found
    assert (u - truth).norm(dim=1)[inside].mean() < 0.4 * truth.norm(dim=1)[inside].mean()


def test_force_of_features_is_the_gradient_of_their_distance() -> None:
    features = [torch.cat([texture(12, 10, seed=s) for s in seeds], dim=1).double() for seeds in ((0, 1), (2, 3))]
    flat, guidance = torch.zeros(1, 1, 12, 10, dtype=torch.float64), 3.0
    method = Variational(guidance=guidance, smooth_update=0.2, longest_step=0.25)
    update = VariationalUpdate(flat, flat, method, features=(features[0], features[1]))
    u = bump(12, 10).double().requires_grad_()
    distance = (features[0] - ops.warp(features[1], u)).square().sum() / 2
    (gradient,) = torch.autograd.grad(distance, u)
    torch.testing.assert_close(update.force(u.detach()), ops.gaussian(-guidance * gradient, 0.2))


def test_features_on_another_grid_than_the_field_are_refused() -> None:
    image, features = texture(12, 10), torch.zeros(1, 4, 6, 5)
    with pytest.raises(ValueError, match=r"features must be \[N, C, \*\[12, 10\]\], got \[1, 4, 6, 5\]"):
        VariationalUpdate(image, image, Variational(), features=(features, features))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 3.0)])
def test_landmarks_pull_where_the_images_do_not(spacing: tuple[float, float]) -> None:
    flat = torch.full((1, 1, 40, 36), 0.5)
    points = torch.tensor([[[20.0, 18.0], [8.0, 9.0]]])
    wanted = torch.tensor([[[2.0, -1.0], [0.0, 0.0]]])
    method = Variational(step=4.0, smooth_field=0.2)
    update = VariationalUpdate(flat, flat, method, spacing=spacing, landmarks=(points, wanted))
    solution = fixed_point(update, torch.zeros(1, 2, 40, 36), solver=Anderson(max_steps=100, tol=1e-3, norm="rms"))
    assert isinstance(solution.value, Tensor)
    found = sample(solution.value, points)
    assert (found - wanted).norm(dim=2)[0, 0] < 0.3 * wanted.norm(dim=2)[0, 0]
    assert found[0, 1].norm() < 0.1


def test_landmarks_must_be_points_of_the_field() -> None:
    with pytest.raises(ValueError, match=r"landmarks must be \[1, P, 2\], got \[4, 2\]"):
        VariationalUpdate(texture(8, 8), texture(8, 8), Variational(), landmarks=(torch.ones(4, 2), torch.ones(4, 2)))
