from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.spatial import invert, invert_points, sample

# The solver stops at a root mean square of 1e-4 voxels; the farthest voxel of a smooth field is within some of those.
CLOSE = 2e-3


def velocity(*shape: int, height: float) -> Tensor:
    """A smooth velocity of two samples, float64."""
    field = ops.gaussian(torch.randn(2, len(shape), *shape, dtype=torch.float64), 4.0)
    return field * (height / field.abs().amax())


def rest(u: Tensor, v: Tensor, affine: Tensor | None = None) -> Tensor:
    """`v(x) + L^-1 u(A(x + v(x)))`, which an inverse makes zero."""
    dims = u.shape[1]
    back = torch.eye(dims).to(u) if affine is None else torch.linalg.inv(affine[:, :dims]).to(u)
    batched = None if affine is None else affine.to(u).expand(len(u), -1, -1).contiguous()
    return v + torch.einsum("ab,nb...->na...", back, ops.warp(u, v, affine=batched))


@pytest.mark.parametrize("shape", [(40, 37), (34, 33, 36), (5, 40, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_composition_with_the_inverse_is_the_identity(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    u = ops.exponential(velocity(*shape, height=4.0)).to(dtype)
    solution = invert(u)
    assert solution.converged
    assert solution.value.dtype == dtype
    assert rest(u, solution.value).abs().max() < CLOSE


def test_a_field_in_half_precision_is_inverted_in_single_under_autocast() -> None:
    u = ops.exponential(velocity(20, 18, height=2.0)).bfloat16()
    points = torch.rand(2, 5, 2) * 10
    with torch.autocast("cpu", torch.bfloat16):
        found = invert(u).value, invert_points(u, points)
    for actual, expected in zip(found, (invert(u.float()).value, invert_points(u.float(), points)), strict=True):
        assert torch.equal(actual, expected)


def test_inverse_of_an_exponential_is_that_of_minus_the_velocity() -> None:
    v = velocity(34, 33, 36, height=3.0)
    # they differ by what interpolating in seven squarings costs
    assert (invert(ops.exponential(v)).value - ops.exponential(-v)).abs().mean() < 0.01


def test_stretches_that_repel_the_simple_iteration_are_inverted() -> None:
    x = torch.arange(64, dtype=torch.float64) - 31.5
    # slope of u up to 3: the map stretches fourfold in the middle and squeezes to a tenth beside it
    along = 3 * x.clamp(-8, 8) - 0.9 * (x.clamp(-40, -8) + 8) - 0.9 * (x.clamp(8, 40) - 8)
    u = ops.gaussian(torch.stack([along[:, None].expand(64, 12), torch.zeros(64, 12)])[None], 1.5).contiguous()
    assert ops.jacobian_determinant(u).min() > 0.05
    assert rest(u, invert(u).value)[:, :, 16:-16].abs().max() < CLOSE


def test_inverse_on_another_grid_of_other_voxels() -> None:
    u = ops.exponential(velocity(30, 32, 28, height=3.0))
    affine = torch.tensor(
        [[0.5, 0.1, 0.0, 2.0], [-0.1, 0.5, 0.05, 6.0], [0.0, -0.2, 1.9, 3.0]], dtype=torch.float64
    )  # thick slices of thin pixels, turned
    solution = invert(u, (40, 36, 12), affine)
    assert solution.value.shape == (2, 3, 40, 36, 12)
    assert rest(u, solution.value, affine).abs().max() < CLOSE


def test_folds_have_no_inverse_and_stay_finite() -> None:
    u = 6 * torch.randn(1, 2, 32, 32)
    solution = invert(u)
    assert not solution.converged
    assert solution.value.isfinite().all()


@pytest.mark.parametrize("shape", [(40, 37), (34, 33, 36)])
def test_points_come_from_where_they_go(shape: tuple[int, ...]) -> None:
    u = ops.exponential(velocity(*shape, height=4.0))
    from_ = 4 + (torch.tensor(shape) - 8) * torch.rand(2, 50, len(shape), dtype=torch.float64)
    torch.testing.assert_close(invert_points(u, from_ + sample(u, from_)), from_, atol=CLOSE, rtol=0)


def test_errors_state_the_contract() -> None:
    with pytest.raises(ValueError, match="displacement must be"):
        invert(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"affine must be \[2, 3\] for this displacement, got \[3, 4\]"):
        invert(torch.zeros(1, 2, 8, 8), affine=torch.eye(3, 4))
    with pytest.raises(ValueError, match=r"points must be \[N, P, 2\] for this displacement, got \[4, 2\]"):
        invert_points(torch.zeros(1, 2, 8, 8), torch.zeros(4, 2))
