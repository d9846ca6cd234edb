"""Composition of two maps given by their displacements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks
from deqreg.ops.checks import PADDINGS


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The displacement of one map after another.

    `compose(a, b)(x) = b(x) + a(x + b(x))`, linear interpolation, `a` extended by its outermost voxels.

    Args:
        outer: `a`, the map applied last, `[N, d, *S_a]`, in voxels, component `i` along array axis `i`.
        inner: `b`, the map applied first, `[N, d, *S_b]`, of the same dtype.

    Returns:
        `[N, d, *S_b]`. Differentiable by both.

    Raises:
        ValueError: when a shape, dtype or device breaks this contract.

    Reference: Vercauteren et al., Diffeomorphic demons, NeuroImage 2009 (45:S61-S72), sec. 2.

    >>> import torch
    >>> shift = torch.ones(1, 2, 4, 4)
    >>> compose(shift, 2 * shift).unique().tolist()
    [3.0]
    """
    outer = checks.check_field("outer", outer)
    inner = checks.check_field("inner", inner, beside=outer)
    checks.check_not_empty("outer", outer)
    return torch.ops.deqreg.compose(outer, inner)


@torch.library.register_fake("deqreg::compose")
def _(outer: Tensor, inner: Tensor) -> Tensor:
    return torch.empty_like(inner, memory_format=torch.contiguous_format)


def compose_gradients(
    outer: Tensor, inner: Tensor, grad: Tensor, by_outer: bool, by_inner: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a composition: a splat for the outer field, the outer field's slope for the inner one."""
    border = PADDINGS["border"]
    grad_outer = grad_inner = None
    if by_outer:
        deterministic = torch.are_deterministic_algorithms_enabled()
        grad_outer = torch.ops.deqreg.splat(grad, inner, outer.shape[2:], None, 0, border, deterministic)
    if by_inner:
        grad_inner = grad + torch.ops.deqreg.warp_gradient(outer, inner, grad, None, border)
    return grad_outer, grad_inner


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    outer, inner = ctx.saved_tensors
    by_outer, by_inner = ctx.needs_input_grad
    return compose_gradients(outer, inner, grad, by_outer, by_inner)


torch.library.register_autograd("deqreg::compose", _backward, setup_context=_setup_context)
