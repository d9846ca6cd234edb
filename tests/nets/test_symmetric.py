from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.equilibrium import Anderson, fixed_point
from deqreg.nets import MeanSquares, SymmetricUpdate, Variational
from tests.nets.test_variational import bump, texture


def update_of(
    fixed: Tensor,
    moving: Tensor,
    method: Variational | None = None,
    features: tuple[Tensor, Tensor] | None = None,
) -> SymmetricUpdate:
    shape = fixed.shape[2:]
    still = torch.eye(len(shape), len(shape) + 1)
    return SymmetricUpdate(
        fixed,
        moving,
        method or Variational(),
        shape=shape,
        field=tuple(n // 2 for n in shape),
        affines=(still, still),
        features=features,
    )


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("shape", [(40, 36), (26, 24, 28)])
def test_images_exchanged_are_displacements_exchanged(shape: tuple[int, ...], guided: bool) -> None:
    fixed, moving = texture(*shape), texture(*shape, seed=1)
    half = [n // 2 for n in shape]
    features = (texture(*half, seed=2), texture(*half, seed=3)) if guided else None
    a, b = (0.5 * torch.randn(1, len(shape), *(n // 2 for n in shape)) for _ in range(2))
    there = update_of(fixed, moving, features=features)(torch.cat([a, b], 1))
    back = update_of(moving, fixed, features=features and features[::-1])(torch.cat([b, a], 1))
    torch.testing.assert_close(torch.cat(back.chunk(2, 1)[::-1], 1), there, atol=1e-6, rtol=0)
    assert (there - torch.cat([a, b], 1)).abs().max() > 0.01  # there was something to exchange


@pytest.mark.parametrize("similarity", [None, MeanSquares()])
def test_both_sides_go_half_of_the_way(similarity: MeanSquares | None) -> None:
    # by 2 voxels, mean squares of this texture have a stationary point elsewhere
    moving, truth = texture(40, 36), bump(40, 36, height=1.5)
    method = Variational() if similarity is None else Variational(similarity=similarity)
    update = update_of(ops.warp(moving, truth), moving, method)
    solution = fixed_point(update, torch.zeros(1, 4, 20, 18), solver=Anderson(max_steps=60, tol=1e-3, norm="rms"))
    assert isinstance(solution.value, Tensor)
    a, b = (update.sides[0].on_image(half.contiguous()) for half in solution.value.chunk(2, 1))
    inside = truth.norm(dim=1) > 0.8
    length = truth.norm(dim=1)[inside].mean()
    assert (b - truth / 2).norm(dim=1)[inside].mean() < 0.3 * length
    assert (a + truth / 2).norm(dim=1)[inside].mean() < 0.3 * length


def test_features_pull_up_the_slope_of_their_squared_distance() -> None:
    """By finite differences, where the images are flat and so is their part."""
    flat, half = torch.zeros(1, 1, 24, 24, dtype=torch.float64), (12, 12)
    features = texture(*half, seed=2).double(), texture(*half, seed=3).double()
    update = update_of(flat, flat, Variational(guidance=1.5, smooth_update=0.5), features)
    sides = [0.3 * torch.randn(1, 2, *half, dtype=torch.float64) for _ in range(2)]
    forces = [torch.zeros(1, 2, *half, dtype=torch.float64) for _ in range(2)]
    update._add_pull_of_features(forces, sides)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return -1.5 / 2 * (ops.warp(features[0], a) - ops.warp(features[1], b)).square().sum()

    leaves = [side.clone().requires_grad_() for side in sides]
    expected = torch.autograd.grad(distance(leaves[0], leaves[1]), leaves)
    torch.testing.assert_close(forces, list(expected), atol=1e-10, rtol=1e-8)


def test_forces_follow_the_images_grids() -> None:
    """Images stored with axes exchanged and at other voxels pull the same way."""
    fixed, moving = texture(32, 32), texture(32, 32, seed=1)
    plain = update_of(fixed, moving)
    turned = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    other = SymmetricUpdate(
        fixed, moving.mT.contiguous(), Variational(), shape=(32, 32), field=(16, 16), affines=(torch.eye(2, 3), turned)
    )
    state = 0.3 * torch.randn(1, 4, 16, 16)
    torch.testing.assert_close(other(state), plain(state), atol=1e-5, rtol=0)
