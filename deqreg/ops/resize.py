"""Linear interpolation onto another grid over the same extent, and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks


def resize(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate an image or a field onto another number of voxels over the same extent.

    `out(i) = image((i + 1/2) S / shape - 1/2)` along every axis, linear between voxel centres, the outermost voxels
    going on beyond theirs. Nothing is averaged on the way to fewer voxels: smooth first.

    Args:
        image: `[N, C, *S]`, 2-D or 3-D.
        shape: voxels along each axis of the result.

    Returns:
        `[N, C, *shape]`. Differentiable any number of times.

    Raises:
        ValueError: when the image or the shape breaks this contract.

    >>> import torch
    >>> resize(torch.tensor([[[[0.0, 4.0]]]]), (1, 4)).flatten().tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    _check(image, shape)
    return torch.ops.deqreg.resize(image, list(shape))


def resize_adjoint(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """The adjoint of `resize`: `<resize_adjoint(grad, S), image> = <grad, resize(image, S')>`.

    Every voxel of `grad` is shared out among the voxels that it was interpolated from.

    Args:
        grad: `[N, C, *S']`, 2-D or 3-D.
        shape: `S`, voxels along each axis of what was resized.

    Returns:
        `[N, C, *S]`, the same bits at any thread count and from run to run. Differentiable any number of times.

    Raises:
        ValueError: when an argument breaks this contract.

    >>> import torch
    >>> resize_adjoint(torch.ones(1, 1, 1, 4), (1, 2)).flatten().tolist()
    [2.0, 2.0]
    """
    _check(grad, shape)
    return torch.ops.deqreg.resize_adjoint(grad, list(shape))


def _check(image: Tensor, shape: Sequence[int]) -> None:
    checks.check_volume("image", image)
    checks.check_not_empty("image", image)
    checks.check_shape(shape, image.ndim - 2)


def _fake(image: Tensor, shape: Sequence[int]) -> Tensor:
    return image.new_empty((*image.shape[:2], *shape))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Sequence[int]], output: Tensor) -> None:
    ctx.shape = inputs[0].shape[2:]


def _resize_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.deqreg.resize_adjoint(grad, ctx.shape), None


def _adjoint_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.deqreg.resize(grad, ctx.shape), None


torch.library.register_fake("deqreg::resize", _fake)
torch.library.register_fake("deqreg::resize_adjoint", _fake)
torch.library.register_autograd("deqreg::resize", _resize_backward, setup_context=_setup_context)
torch.library.register_autograd("deqreg::resize_adjoint", _adjoint_backward, setup_context=_setup_context)
