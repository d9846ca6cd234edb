"""The exponential of a stationary velocity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks
from deqreg.ops.compose import compose_gradients


def exponential(velocity: Tensor, steps: int = 7) -> Tensor:
    """The displacement after flowing along a stationary velocity for unit time, by scaling and squaring.

    `u_0 = v / 2^steps`, `u_{k+1} = compose(u_k, u_k)`, `exp(v) = u_steps`.

    Args:
        velocity: `v`, `[N, d, *S]`, in voxels, component `a` along array axis `a`; float32 or float64.
        steps: how often to square; the first displacement should be well under a voxel.

    Returns:
        `[N, d, *S]`. Differentiable: the backward pass computes the intermediate fields again instead of keeping them.

    Raises:
        ValueError: when a shape or dtype breaks this contract, or steps is not in 0 ... 30.

    Reference: Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006, alg. 2.

    >>> import torch
    >>> forth = torch.ones(1, 2, 8, 8)
    >>> exponential(forth).unique().tolist()
    [1.0]
    """
    velocity = checks.check_field("velocity", velocity)
    checks.check_not_empty("velocity", velocity)
    if not 0 <= steps <= 30:
        raise ValueError(f"steps must be in 0 ... 30, got {steps}")
    return torch.ops.deqreg.exponential(velocity, steps)


@torch.library.register_fake("deqreg::exponential")
def _(velocity: Tensor, steps: int) -> Tensor:
    return torch.empty_like(velocity, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    velocity, ctx.steps = inputs
    ctx.save_for_backward(velocity)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (velocity,) = ctx.saved_tensors
    fields = [velocity / 2**ctx.steps]
    for _ in range(ctx.steps - 1):
        fields.append(torch.ops.deqreg.compose(fields[-1], fields[-1]))
    for field in reversed(fields[: ctx.steps]):
        by_outer, by_inner = compose_gradients(field, field, grad, True, True)
        assert by_outer is not None
        assert by_inner is not None
        grad = by_outer + by_inner
    return grad / 2**ctx.steps, None


torch.library.register_autograd("deqreg::exponential", _backward, setup_context=_setup_context)
