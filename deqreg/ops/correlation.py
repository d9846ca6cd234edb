"""How alike features are, for every shift in a window around a displacement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks
from deqreg.ops.autograd import forbid_second_derivative

MAX_RADIUS = 4


def correlation(fixed: Tensor, moving: Tensor, displacement: Tensor | None = None, *, radius: int) -> Tensor:
    """Dot products of fixed features with displaced moving features, at every shift in a cubic window.

    `out(delta, x) = <fixed(x), moving(x + u(x) + delta)> / sqrt(C)` for `delta` in `{-radius, ..., radius}^d`, the last
    axis fastest. All shifts of a voxel share the interpolation weights of `x + u(x)`. Features are extended by their
    outermost voxels. Nothing but the output is allocated, on the CPU but for a few MiB a thread.

    Args:
        fixed: `[N, C, *S]`, 2-D or 3-D.
        moving: as fixed.
        displacement: `u`, `[N, d, *S]`, in voxels, component `a` along array axis `a`; float32, or float64 with float64
            features. Zero where it is not given, and then nothing is interpolated.
        radius: reach of the window in voxels, 0 to 4.

    Returns:
        `[N, (2 radius + 1)^d, *S]`, of the features' dtype. Differentiable, once, by both features and the
        displacement. On the CPU the same bits at any thread count, forward and backward. On CUDA the gradient by
        displaced moving features adds with atomics, unless `torch.use_deterministic_algorithms` asks for the same bits
        in every run.

    Raises:
        ValueError: when a shape, dtype, device or the radius breaks this contract.

    Reference: Teed and Deng, RAFT, ECCV 2020, sec. 3.2, on a grid of three axes and without the volume of all pairs.

    >>> import torch
    >>> features = torch.eye(4).view(1, 4, 1, 4)
    >>> correlation(features, features, radius=1)[0, 3:6, 0].tolist()
    [[0.5, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.5]]
    """
    displacement = check_features(fixed, moving, displacement, radius)
    return torch.ops.deqreg.correlation(fixed, moving, displacement, radius)


def check_features(fixed: Tensor, moving: Tensor, displacement: Tensor | None, radius: int) -> Tensor | None:
    """What is correlated: two features on one grid, a displacement there, and a radius. Returns the displacement."""
    checks.check_volume("fixed", fixed)
    if fixed.shape[1] == 0:
        raise ValueError(f"fixed must have at least one channel, got {list(fixed.shape)}")
    checks.check_same("moving", moving, "fixed", fixed)
    if displacement is not None:
        displacement = checks.check_field("displacement", displacement, beside=fixed)
        if displacement.shape[2:] != fixed.shape[2:]:
            raise ValueError(
                f"displacement must be on the grid of fixed, {list(fixed.shape[2:])}, "
                f"got {list(displacement.shape[2:])}"
            )
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius must be 0 to {MAX_RADIUS}, got {radius}")
    return displacement


@torch.library.register_fake("deqreg::correlation")
def _(fixed: Tensor, moving: Tensor, displacement: Tensor | None, radius: int) -> Tensor:
    shifts = (2 * radius + 1) ** (fixed.ndim - 2)
    return fixed.new_empty((fixed.shape[0], shifts, *fixed.shape[2:]))


@torch.library.register_fake("deqreg::correlation_gradient")
def _(
    fixed: Tensor,
    moving: Tensor,
    displacement: Tensor | None,
    grad: Tensor,
    radius: int,
    need_fixed: bool,
    need_moving: bool,
    need_displacement: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    field = (fixed.shape[0], fixed.ndim - 2, *fixed.shape[2:])
    return (
        fixed.new_empty(fixed.shape if need_fixed else (0,)),
        fixed.new_empty(fixed.shape if need_moving else (0,)),
        fixed.new_empty(field if need_displacement else (0,), dtype=checks.coordinate_dtype(fixed)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    fixed, moving, displacement, ctx.radius = inputs
    ctx.save_for_backward(fixed, moving, displacement)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    gradients = torch.ops.deqreg.correlation_gradient(
        *ctx.saved_tensors, grad, ctx.radius, *needs, torch.are_deterministic_algorithms_enabled()
    )
    return (*(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), None)


torch.library.register_autograd("deqreg::correlation", _backward, setup_context=_setup_context)
forbid_second_derivative("deqreg::correlation_gradient")
