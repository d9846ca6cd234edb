from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.equilibrium import Anderson, fixed_point
from deqreg.nets import MeanSquares, SymmetricUpdate, Variational
from tests.nets.test_variational import bump, texture


def update_of(fixed: Tensor, moving: Tensor, method: Variational | None = None) -> SymmetricUpdate:
    shape = fixed.shape[2:]
    still = torch.eye(len(shape), len(shape) + 1)
    half = tuple(n // 2 for n in shape)
    return SymmetricUpdate(fixed, moving, method or Variational(), shape=shape, field=half, affines=(still, still))


@pytest.mark.parametrize("shape", [(40, 36), (26, 24, 28)])
def test_images_exchanged_are_displacements_exchanged(shape: tuple[int, ...]) -> None:
    fixed, moving = texture(*shape), texture(*shape, seed=1)
    a, b = (0.5 * torch.randn(1, len(shape), *(n // 2 for n in shape)) for _ in range(2))
    there = update_of(fixed, moving)(torch.cat([a, b], 1))
    back = update_of(moving, fixed)(torch.cat([b, a], 1))
    torch.testing.assert_close(torch.cat(back.chunk(2, 1)[::-1], 1), there, atol=1e-6, rtol=0)
    assert (there - torch.cat([a, b], 1)).abs().max() > 0.01  # there was something to exchange


@pytest.mark.parametrize("similarity", [None, MeanSquares()])
def test_both_sides_go_half_of_the_way(similarity: MeanSquares | None) -> None:
    moving, truth = texture(40, 36), bump(40, 36, height=2.0)
    method = Variational() if similarity is None else Variational(similarity=similarity)
    update = update_of(ops.warp(moving, truth), moving, method)
    solution = fixed_point(update, torch.zeros(1, 4, 20, 18), solver=Anderson(max_steps=60, tol=1e-3, norm="rms"))
    assert isinstance(solution.value, Tensor)
    a, b = (update.sides[0].on_image(half.contiguous()) for half in solution.value.chunk(2, 1))
    inside = truth.norm(dim=1) > 0.8
    length = truth.norm(dim=1)[inside].mean()
    assert (b - truth / 2).norm(dim=1)[inside].mean() < 0.3 * length
    assert (a + truth / 2).norm(dim=1)[inside].mean() < 0.3 * length


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
