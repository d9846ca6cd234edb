"""What holds for all operators: derivatives that torch would lose raise, and fields keep their precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from deqreg import ops

IMAGE, FIELD = torch.rand(1, 1, 5, 6), torch.rand(1, 2, 5, 6)
WEIGHT, BIAS, AFFINE = torch.rand(2, 9), torch.rand(2), torch.eye(2, 3)[None]

# every operator by every argument that it has a gradient for
DERIVATIVES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "warp, image": (lambda a: ops.warp(a, FIELD), IMAGE),
    "warp, displacement": (lambda a: ops.warp(IMAGE, a), FIELD),
    "warp, affine": (lambda a: ops.warp(IMAGE, FIELD, affine=a), AFFINE),
    "warp_gradient, image": (lambda a: ops.warp_gradient(a, FIELD, IMAGE), IMAGE),
    "warp_gradient, displacement": (lambda a: ops.warp_gradient(IMAGE, a, IMAGE), FIELD),
    "warp_gradient, values": (lambda a: ops.warp_gradient(IMAGE, FIELD, a), IMAGE),
    "splat, values": (lambda a: ops.splat(a, FIELD, (5, 6)), IMAGE),
    "splat, displacement": (lambda a: ops.splat(IMAGE, a, (5, 6)), FIELD),
    "splat, affine": (lambda a: ops.splat(IMAGE, FIELD, (5, 6), affine=a), AFFINE),
    "compose, outer": (lambda a: ops.compose(a, FIELD), FIELD),
    "compose, inner": (lambda a: ops.compose(FIELD, a), FIELD),
    "exponential": (ops.exponential, FIELD),
    "jacobian_determinant": (ops.jacobian_determinant, FIELD),
    "correlation, fixed": (lambda a: ops.correlation(a, IMAGE, FIELD, radius=1), IMAGE),
    "correlation, moving": (lambda a: ops.correlation(IMAGE, a, FIELD, radius=1), IMAGE),
    "correlation, displacement": (lambda a: ops.correlation(IMAGE, IMAGE, a, radius=1), FIELD),
    "correlation_projection, moving": (
        lambda a: ops.correlation_projection(IMAGE, a, None, WEIGHT, BIAS, radius=1),
        IMAGE,
    ),
    "correlation_projection, weight": (
        lambda a: ops.correlation_projection(IMAGE, IMAGE, None, a, BIAS, radius=1),
        WEIGHT,
    ),
    "correlation_projection, bias": (
        lambda a: ops.correlation_projection(IMAGE, IMAGE, None, WEIGHT, a, radius=1),
        BIAS,
    ),
    "lncc, fixed": (lambda a: ops.lncc(a, IMAGE), IMAGE),
    "lncc, warped": (lambda a: ops.lncc(IMAGE, a), IMAGE),
    "gaussian": (lambda a: ops.gaussian(a, 1.0), IMAGE),
    "resize": (lambda a: ops.resize(a, (3, 4)), IMAGE),
    "resize_adjoint": (lambda a: ops.resize_adjoint(a, (7, 8)), IMAGE),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_forward_mode_raises(name: str) -> None:
    function, at = DERIVATIVES[name]
    with pytest.raises(RuntimeError, match="must have no tangent"):
        torch.func.jvp(function, (at,), (torch.ones_like(at),))


def test_forward_mode_raises_however_it_is_asked_for() -> None:
    with pytest.raises(RuntimeError, match="displacement must have no tangent"):
        torch.func.jacfwd(lambda u: ops.warp(IMAGE, u))(FIELD)
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match="displacement must have no tangent"):
            ops.warp(IMAGE, forward_ad.make_dual(FIELD, FIELD))
        # what has none goes on as ever
        assert torch.equal(ops.warp(IMAGE, FIELD), ops.warp(IMAGE, FIELD.clone()))


@pytest.mark.parametrize("name", [name for name, (_, at) in DERIVATIVES.items() if at is FIELD])
def test_a_field_that_autocast_left_in_half_precision_is_taken_in_single(name: str) -> None:
    function, _ = DERIVATIVES[name]
    half = FIELD.bfloat16().requires_grad_()
    with pytest.raises(ValueError, match=r"must be torch.float32, got torch.bfloat16"):
        function(half)
    expected = function(half.float())
    with torch.autocast("cpu", torch.bfloat16):
        actual = function(half)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    if not name.startswith("warp_gradient"):  # which has no derivative
        (gradient,) = torch.autograd.grad(actual.sum(), half)
        assert torch.equal(gradient, torch.autograd.grad(expected.sum(), half)[0])
