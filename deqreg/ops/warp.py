"""Sampling of an image under a displacement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks
from deqreg.ops.autograd import forbid_second_derivative


def warp(
    image: Tensor,
    displacement: Tensor,
    *,
    affine: Tensor | None = None,
    interpolation: str = "linear",
    padding: str = "border",
) -> Tensor:
    """Sample an image at displaced positions.

    `warped(x) = image(A (x + u(x)) + t)`, with `A = I, t = 0` where no affine map is given. No grid is materialised.

    Args:
        image: `[N, C, *S_image]`, 2-D or 3-D.
        displacement: `u`, `[N, d, *S_out]`, in voxels, component `a` along array axis `a`; float32, or float64 with a
            float64 image.
        affine: `[A | t]`, `[N, d, d + 1]`, maps output voxels to image voxels.
        interpolation: `"linear"`, or `"nearest"` (voxel `floor(y + 1/2)`), which passes no gradient to the positions.
        padding: `"border"` extends the image by its outermost voxels, `"zeros"` surrounds it with zeros.

    Returns:
        `[N, C, *S_out]`, of the image's dtype. Differentiable by image, displacement and affine.

    Raises:
        ValueError: when a shape, dtype, device or name breaks this contract.

    Reference: Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015, eq. 5.

    >>> import torch
    >>> image = torch.arange(12.0).view(1, 1, 3, 4)
    >>> warp(image, torch.full((1, 2, 3, 4), 0.5))[0, 0, 0].tolist()
    [2.5, 3.5, 4.5, 5.0]
    """
    checks.check_volume("image", image)
    checks.check_not_empty("image", image)
    displacement = checks.check_field("displacement", displacement, beside=image)
    checks.check_affine(affine, image)
    mode = checks.choose("interpolation", interpolation, checks.INTERPOLATIONS)
    return torch.ops.deqreg.warp(image, displacement, affine, mode, checks.choose("padding", padding, checks.PADDINGS))


def warp_gradient(
    image: Tensor,
    displacement: Tensor,
    values: Tensor,
    *,
    affine: Tensor | None = None,
    padding: str = "border",
) -> Tensor:
    """The slope of an image at displaced positions, weighted and summed over channels.

    `out(x) = sum_c values_c(x) grad image_c(y(x))`, `y = A (x + u(x)) + t`: the gradient of `<values, warp(image, u)>`
    by the sample positions `y`, and by `u` where `A = I`. The force of a classical registration.

    Args:
        image: `[N, C, *S_image]`, 2-D or 3-D.
        displacement: `u`, `[N, d, *S_out]`, in voxels, as in `warp`.
        values: `[N, C, *S_out]`, of the image's dtype.
        affine: `[A | t]`, `[N, d, d + 1]`, as in `warp`.
        padding: as in `warp`; where `"border"` extends the image, its slope is zero.

    Returns:
        `[N, d, *S_out]`, per voxel of the image. Has no derivative of its own: differentiating it raises.

    Raises:
        ValueError: when a shape, dtype, device or name breaks this contract.

    >>> import torch
    >>> ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 3, 4)
    >>> warp_gradient(ramp, torch.zeros(1, 2, 3, 4), torch.ones(1, 1, 3, 4))[0, 1, 0].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    checks.check_volume("image", image)
    checks.check_not_empty("image", image)
    displacement = checks.check_field("displacement", displacement, beside=image)
    checks.check_affine(affine, image)
    expected = torch.Size((*image.shape[:2], *displacement.shape[2:]))
    if values.shape != expected or values.dtype != image.dtype:
        raise ValueError(f"values must be {list(expected)} {image.dtype}, got {list(values.shape)} {values.dtype}")
    checks.check_device("values", values, image)
    checks.check_tangent("values", values)
    mode = checks.choose("padding", padding, checks.PADDINGS)
    return torch.ops.deqreg.warp_gradient(image, displacement, values, affine, mode)


def position_gradients(
    gradient: Tensor, displacement: Tensor, affine: Tensor | None, needs_displacement: bool, needs_affine: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Pull a gradient by the sample position `y = A (x + u) + t` back to displacement and affine.

    `dL/du = A^T dL/dy`; `dL/dA = sum_x dL/dy (x + u)^T`; `dL/dt = sum_x dL/dy`.
    """
    if affine is None:
        return (gradient if needs_displacement else None), None
    dims = displacement.shape[1]
    by_displacement = torch.einsum("nab,na...->nb...", affine[:, :, :dims], gradient) if needs_displacement else None
    if not needs_affine:
        return by_displacement, None
    columns = []
    for axis, size in enumerate(displacement.shape[2:]):
        index = torch.arange(size, dtype=gradient.dtype, device=gradient.device)
        position = displacement[:, axis] + index.view(-1, *[1] * (dims - 1 - axis))
        columns.append((gradient * position[:, None]).flatten(2).sum(-1))
    columns.append(gradient.flatten(2).sum(-1))
    return by_displacement, torch.stack(columns, dim=-1)


@torch.library.register_fake("deqreg::warp")
def _(image: Tensor, displacement: Tensor, affine: Tensor | None, interpolation: int, padding: int) -> Tensor:
    return image.new_empty((*image.shape[:2], *displacement.shape[2:]))


@torch.library.register_fake("deqreg::warp_gradient")
def _(image: Tensor, displacement: Tensor, values: Tensor, affine: Tensor | None, padding: int) -> Tensor:
    return torch.empty_like(displacement, memory_format=torch.contiguous_format)


@torch.library.register_fake("deqreg::warp_gradients")
def _(
    image: Tensor, displacement: Tensor, values: Tensor, affine: Tensor | None, padding: int
) -> tuple[Tensor, Tensor]:
    by_position = torch.empty_like(displacement, memory_format=torch.contiguous_format)
    return torch.empty_like(image, memory_format=torch.contiguous_format), by_position


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, displacement, affine, ctx.interpolation, ctx.padding = inputs
    ctx.save_for_backward(image, displacement, affine)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    image, displacement, affine = ctx.saved_tensors
    by_image, needs_displacement, needs_affine = ctx.needs_input_grad[:3]
    nearest, by_position = ctx.interpolation == checks.INTERPOLATIONS["nearest"], needs_displacement or needs_affine
    grad_image = grad_displacement = grad_affine = gradient = None
    # both in one pass, which has no derivative of its own
    if by_image and by_position and not nearest and grad.device.type == "cpu" and not torch.is_grad_enabled():
        grad_image, gradient = torch.ops.deqreg.warp_gradients(image, displacement, grad, affine, ctx.padding)
    elif by_image:
        deterministic = torch.are_deterministic_algorithms_enabled()
        grad_image = torch.ops.deqreg.splat(
            grad, displacement, image.shape[2:], affine, ctx.interpolation, ctx.padding, deterministic
        )
    if by_position:
        if nearest:
            gradient = torch.zeros_like(displacement)
        elif gradient is None:
            gradient = torch.ops.deqreg.warp_gradient(image, displacement, grad, affine, ctx.padding)
        grad_displacement, grad_affine = position_gradients(
            gradient, displacement, affine, needs_displacement, needs_affine
        )
    return grad_image, grad_displacement, grad_affine, None, None


torch.library.register_autograd("deqreg::warp", _backward, setup_context=_setup_context)
torch.library.register_autocast("deqreg::warp", "cuda", torch.float32)
forbid_second_derivative("deqreg::warp_gradient")
forbid_second_derivative("deqreg::warp_gradients")
