"""Gaussian smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks

MAX_SIGMA = 64 / 3  # the kernels hold 64 taps on either side, three standard deviations


def gaussian(image: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """Smooth an image or a field with a Gaussian along every axis.

    `out(x) = sum_k g(k) image(x + k)`, `g` sampled at the voxels out to three standard deviations and normalised; the
    image is mirrored at its faces (`b a | a b`), so that constants stay and the operator is its own adjoint.

    Args:
        image: `[N, C, *S]`, 2-D or 3-D.
        sigma: standard deviation in voxels, one for all axes or one an axis in array order; 0 leaves an axis alone.

    Returns:
        `[N, C, *S]`. Differentiable.

    Raises:
        ValueError: when the image breaks this contract, or sigma is not in 0 ... 21.3.

    >>> import torch
    >>> [round(value, 3) for value in gaussian(torch.eye(3)[None, None], 0.5)[0, 0, 1].tolist()]
    [0.179, 0.641, 0.179]
    """
    checks.check_volume("image", image)
    dims = image.ndim - 2
    sigmas = [float(sigma)] * dims if isinstance(sigma, (int, float)) else [float(s) for s in sigma]
    if len(sigmas) != dims or not all(0 <= s <= MAX_SIGMA for s in sigmas):
        raise ValueError(f"sigma must be one number or {dims}, each in 0 ... {MAX_SIGMA:.1f} voxels, got {sigma}")
    return torch.ops.deqreg.gaussian(image, sigmas)


@torch.library.register_fake("deqreg::gaussian")
def _(image: Tensor, sigma: Sequence[float]) -> Tensor:
    return torch.empty_like(image, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Sequence[float]], output: Tensor) -> None:
    ctx.sigma = inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.deqreg.gaussian(grad, ctx.sigma), None


torch.library.register_autograd("deqreg::gaussian", _backward, setup_context=_setup_context)
