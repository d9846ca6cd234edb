"""Correlation and the convolution of single voxels behind it, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks
from deqreg.ops.autograd import forbid_second_derivative
from deqreg.ops.correlation import check_features


def correlation_projection(
    fixed: Tensor,
    moving: Tensor,
    displacement: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    radius: int,
) -> Tensor:
    """Projections of a voxel's correlations, without the volume of all of them.

    `out(o, x) = bias(o) + sum_delta weight(o, delta) <fixed(x), moving(x + u(x) + delta)> / sqrt(C)`: what
    `correlation` and a convolution of kernel size 1 make, with one value a voxel and output written instead of
    `(2 radius + 1)^d` besides.

    Args:
        fixed: `[N, C, *S]`, 2-D or 3-D.
        moving: as fixed.
        displacement: `u`, `[N, d, *S]`, in voxels; None for zero, as in `correlation`.
        weight: `[O, (2 radius + 1)^d]`, shifts with the last axis fastest; of the features' dtype.
        bias: `[O]`, or None for zero.
        radius: reach of the window in voxels, 0 to 4.

    Returns:
        `[N, O, *S]`, of the features' dtype. Differentiable, once, by both features, the displacement, the weight and
        the bias; the correlations are computed again for that, on the CPU a few voxels at a time, on CUDA one sample
        at a time. On the CPU the same bits at any thread count, forward and backward.

    Raises:
        ValueError: when a shape, dtype, device or the radius breaks this contract.

    Reference: Teed and Deng, RAFT, ECCV 2020, whose motion encoder begins with such a convolution.

    >>> features, u = torch.rand(1, 4, 6, 7), torch.zeros(1, 2, 6, 7)
    >>> mean = torch.full((1, 9), 1 / 9)
    >>> out = correlation_projection(features, features, u, mean, radius=1)
    >>> torch.allclose(out, torch.ops.deqreg.correlation(features, features, u, 1).mean(1, keepdim=True))
    True
    """
    displacement = check_features(fixed, moving, displacement, radius)
    shifts = (2 * radius + 1) ** (fixed.ndim - 2)
    if weight.ndim != 2 or weight.shape[1] != shifts:
        raise ValueError(f"weight must be [O, {shifts}] for a radius of {radius}, got {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != fixed.dtype:
            raise ValueError(f"{name} must be {fixed.dtype}, got {tensor.dtype}")
        if tensor is not None:
            checks.check_device(name, tensor, fixed)
            checks.check_tangent(name, tensor)
    return torch.ops.deqreg.correlation_projection(fixed, moving, displacement, weight, bias, radius)


@torch.library.register_fake("deqreg::correlation_projection")
def _(
    fixed: Tensor, moving: Tensor, displacement: Tensor | None, weight: Tensor, bias: Tensor | None, radius: int
) -> Tensor:
    return fixed.new_empty((fixed.shape[0], weight.shape[0], *fixed.shape[2:]))


@torch.library.register_fake("deqreg::correlation_projection_gradient")
def _(
    fixed: Tensor,
    moving: Tensor,
    displacement: Tensor | None,
    weight: Tensor,
    grad: Tensor,
    radius: int,
    need_fixed: bool,
    need_moving: bool,
    need_displacement: bool,
    need_projection: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    field = (fixed.shape[0], fixed.ndim - 2, *fixed.shape[2:])
    return (
        fixed.new_empty(fixed.shape if need_fixed else (0,)),
        fixed.new_empty(fixed.shape if need_moving else (0,)),
        fixed.new_empty(field if need_displacement else (0,), dtype=checks.coordinate_dtype(fixed)),
        fixed.new_empty((weight.shape[0], weight.shape[1] + 1) if need_projection else (0,)),
    )


def gradient_by_samples(
    fixed: Tensor,
    moving: Tensor,
    displacement: Tensor | None,
    weight: Tensor,
    grad: Tensor,
    radius: int,
    need_fixed: bool,
    need_moving: bool,
    need_displacement: bool,
    need_projection: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`correlation_projection_gradient` in terms of `correlation`, with one sample's volume held at a time."""
    by_features: list[tuple[Tensor, ...]] = []
    by_projection = grad.new_zeros(weight.shape[0], weight.shape[1] + 1, dtype=checks.coordinate_dtype(fixed))
    for n in range(fixed.shape[0]):
        features = fixed[n : n + 1], moving[n : n + 1], None if displacement is None else displacement[n : n + 1]
        flat = grad[n].flatten(1)
        if need_fixed or need_moving or need_displacement:
            by_value = (weight.T @ flat).view(1, -1, *grad.shape[2:])
            wanted = need_fixed, need_moving, need_displacement, deterministic
            by_features.append(torch.ops.deqreg.correlation_gradient(*features, by_value, radius, *wanted))
        if need_projection:
            values = torch.ops.deqreg.correlation(*features, radius).flatten(2)[0]
            by_projection[:, :-1] += flat @ values.T
            by_projection[:, -1] += flat.sum(1)
    needs = need_fixed, need_moving, need_displacement
    shapes = (
        fixed,
        fixed,
        fixed.new_empty(0, dtype=checks.coordinate_dtype(fixed)) if displacement is None else displacement,
    )
    parts = zip(*by_features, strict=True) if by_features else ([], [], [])
    joined = (
        torch.cat(list(found)) if need and found else like.new_zeros(like.shape if need else 0)
        for need, found, like in zip(needs, parts, shapes, strict=True)
    )
    return (*joined, by_projection.to(fixed.dtype) if need_projection else fixed.new_empty(0))  # pyright: ignore[reportReturnType]


torch.library.impl("deqreg::correlation_projection_gradient", "CUDA", gradient_by_samples)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    fixed, moving, displacement, weight, _, ctx.radius = inputs
    ctx.save_for_backward(fixed, moving, displacement, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    fixed, moving, displacement, weight = ctx.saved_tensors
    features, projection = ctx.needs_input_grad[:3], ctx.needs_input_grad[3:5]
    *by_features, by_projection = torch.ops.deqreg.correlation_projection_gradient(
        fixed, moving, displacement, weight, grad, ctx.radius, *features, any(projection),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return (
        *(gradient if need else None for gradient, need in zip(by_features, features, strict=True)),
        by_projection[:, :-1] if projection[0] else None,
        by_projection[:, -1] if projection[1] else None,
        None,
    )


torch.library.register_autograd("deqreg::correlation_projection", _backward, setup_context=_setup_context)
forbid_second_derivative("deqreg::correlation_projection_gradient")
