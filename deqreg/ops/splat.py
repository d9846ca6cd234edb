"""The adjoint of the warp in its image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks
from deqreg.ops.warp import position_gradients


def splat(
    values: Tensor,
    displacement: Tensor,
    shape: Sequence[int],
    *,
    affine: Tensor | None = None,
    interpolation: str = "linear",
    padding: str = "border",
) -> Tensor:
    """Add values into an image at displaced positions: the adjoint of `warp` in its image.

    `<splat(values, u), image> = <values, warp(image, u)>` for every image of the given shape.

    Args:
        values: `[N, C, *S]`, 2-D or 3-D.
        displacement: `u`, `[N, d, *S]`, in voxels, component `a` along array axis `a`; float32, or float64 with
            float64 values.
        shape: spatial shape of the image that is filled.
        affine: `[A | t]`, `[N, d, d + 1]`, as in `warp`.
        interpolation: `"linear"` or `"nearest"`, as in `warp`.
        padding: `"border"` adds what falls outside to the outermost voxels, `"zeros"` drops it.

    Returns:
        `[N, C, *shape]`. Differentiable by values, displacement and affine. On the CPU the same bits at any thread
        count; on CUDA under `torch.use_deterministic_algorithms(True)`.

    Raises:
        ValueError: when a shape, dtype, device or name breaks this contract.

    Reference: the push operation of Ashburner and Friston, NeuroImage 2011 (55:954-967), sec. 2.

    >>> import torch
    >>> ones, u = torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)
    >>> splat(ones, u + 0.5, (2, 2))[0, 0].tolist()
    [[0.25, 0.75], [0.75, 2.25]]
    """
    checks.check_volume("values", values)
    displacement = checks.check_field("displacement", displacement, beside=values)
    if displacement.shape[2:] != values.shape[2:]:
        raise ValueError(
            f"displacement must be on the grid of values, {list(values.shape[2:])}, got {list(displacement.shape[2:])}"
        )
    checks.check_affine(affine, values)
    checks.check_shape(shape, values.ndim - 2)
    mode = checks.choose("interpolation", interpolation, checks.INTERPOLATIONS)
    return torch.ops.deqreg.splat(
        values,
        displacement,
        list(shape),
        affine,
        mode,
        checks.choose("padding", padding, checks.PADDINGS),
        torch.are_deterministic_algorithms_enabled(),
    )


@torch.library.register_fake("deqreg::splat")
def _(
    values: Tensor,
    displacement: Tensor,
    shape: Sequence[int],
    affine: Tensor | None,
    interpolation: int,
    padding: int,
    deterministic: bool,
) -> Tensor:
    return values.new_empty((*values.shape[:2], *shape))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, displacement, _, affine, ctx.interpolation, ctx.padding, _ = inputs
    ctx.save_for_backward(values, displacement, affine)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, displacement, affine = ctx.saved_tensors
    by_values, needs_displacement, _, needs_affine = ctx.needs_input_grad[:4]
    grad_values = grad_displacement = grad_affine = None
    if by_values:
        grad_values = torch.ops.deqreg.warp(grad, displacement, affine, ctx.interpolation, ctx.padding)
    if needs_displacement or needs_affine:
        if ctx.interpolation == checks.INTERPOLATIONS["nearest"]:
            gradient = torch.zeros_like(displacement)
        else:
            gradient = torch.ops.deqreg.warp_gradient(grad, displacement, values, affine, ctx.padding)
        grad_displacement, grad_affine = position_gradients(
            gradient, displacement, affine, needs_displacement, needs_affine
        )
    return grad_values, grad_displacement, None, grad_affine, None, None, None


torch.library.register_autograd("deqreg::splat", _backward, setup_context=_setup_context)
torch.library.register_autocast("deqreg::splat", "cuda", torch.float32)
