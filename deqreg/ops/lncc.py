"""Local normalised cross-correlation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks
from deqreg.ops.autograd import forbid_second_derivative

# The variance of the rounding of an 8-bit image scaled to [0, 1], (1/255)^2 / 12: a window that varies less is flat.
EPSILON = 1e-6


def lncc(
    fixed: Tensor,
    warped: Tensor,
    *,
    window: int = 9,
    mask: Tensor | None = None,
    epsilon: float = EPSILON,
    shared: float = 0.0,
) -> Tensor:
    """Mean squared local correlation of two images.

    `mean_x (cov(x) + shared)^2 / ((var_fixed(x) + epsilon) (var_warped(x) + epsilon))`, with the population moments of
    the cubic window around `x`, clipped to the image and to the mask. In [0, 1]: 1 where the images are related by an
    affine map of intensities in every window.

    Args:
        fixed: `[N, 1, *S]`, 2-D or 3-D, intensities of about [0, 1].
        warped: as fixed.
        window: edge length of the window in voxels, odd; larger than the image is allowed.
        mask: `[N, 1, *S]`, of any dtype, nonzero inside. Voxels outside count in no window and no mean, whatever they
            hold.
        epsilon: added to both variances, in squared intensities. The default is the variance of an 8-bit image's
            rounding, so that a window which varies less than that counts as flat; scale it with the square of the
            intensities' range.
        shared: how much of epsilon the images are taken to have in common, 0 ... epsilon. With 0, flat windows count 0,
            and an image can still gain by more contrast than its twin has. With epsilon, two flat windows count 1, and
            an image is stationary where it equals its twin: what a registration needs to leave equal images alone.

    Returns:
        `[N]`, float32, or float64 with float64 images; 0 where a sample's mask is empty. Differentiable, once, by both
        images. The same bits from run to run, on the CPU at any thread count.

    Raises:
        ValueError: when a shape, dtype, device or number breaks this contract.

    Reference: Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Medical Image Analysis
    2008 (12:26-41), eq. 5; the gradient here is the exact one of the mean, not that article's of the central voxel.

    >>> import torch
    >>> image = torch.linspace(0, 1, 60).view(1, 1, 3, 4, 5)
    >>> [round(v, 3) for v in lncc(image, 1 - image / 2, window=3).tolist()]
    [1.0]
    """
    mask = _check(fixed, warped, window, mask, epsilon, shared)
    return torch.ops.deqreg.lncc(fixed, warped, mask, window, epsilon, shared)


def lncc_gradient(
    fixed: Tensor,
    warped: Tensor,
    *,
    window: int = 9,
    mask: Tensor | None = None,
    epsilon: float = EPSILON,
    shared: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`lncc` and its exact gradient by the warped image, in one pass and outside of autograd.

    Args:
        fixed: `[N, 1, *S]`, as in `lncc`.
        warped: as fixed.
        window: as in `lncc`.
        mask: as in `lncc`.
        epsilon: as in `lncc`.
        shared: as in `lncc`.

    Returns:
        The value `[N]`, and `d value[n] / d warped[n]`, `[N, 1, *S]`, zero outside the mask. The same bits as `lncc`
        and its backward give. Neither can be differentiated. Both are float32 where the images are float16 or
        bfloat16: an entry is a share of the image's mean, and float16 would lose small ones.

    Raises:
        ValueError: as in `lncc`.

    Reference: as in `lncc`.

    >>> import torch
    >>> image = torch.linspace(0, 1, 20).view(1, 1, 4, 5) ** 2
    >>> value, gradient = lncc_gradient(image, image.flip(2), window=3)
    >>> value.shape, gradient.shape
    (torch.Size([1]), torch.Size([1, 1, 4, 5]))
    """
    mask = _check(fixed, warped, window, mask, epsilon, shared)
    value, _, gradient = torch.ops.deqreg.lncc_gradient(fixed, warped, mask, window, epsilon, shared, False, True)
    return value, gradient


def lncc_gradients(
    fixed: Tensor,
    warped: Tensor,
    *,
    window: int = 9,
    mask: Tensor | None = None,
    epsilon: float = EPSILON,
    shared: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lncc` and its exact gradients by either image, in one pass and outside of autograd.

    Args:
        fixed: `[N, 1, *S]`, as in `lncc`.
        warped: as fixed.
        window: as in `lncc`.
        mask: as in `lncc`.
        epsilon: as in `lncc`.
        shared: as in `lncc`.

    Returns:
        The value `[N]`, and the gradients by fixed and by warped, `[N, 1, *S]` each, as `lncc_gradient` has them: a
        second gradient costs a fraction of the first. Exchanging the images exchanges them.

    Raises:
        ValueError: as in `lncc`.

    Reference: as in `lncc`.

    >>> import torch
    >>> image = torch.linspace(0, 1, 20).view(1, 1, 4, 5) ** 2
    >>> value, by_fixed, by_warped = lncc_gradients(image, image.flip(2), window=3)
    >>> by_fixed.shape, by_warped.shape
    (torch.Size([1, 1, 4, 5]), torch.Size([1, 1, 4, 5]))
    """
    mask = _check(fixed, warped, window, mask, epsilon, shared)
    return torch.ops.deqreg.lncc_gradient(fixed, warped, mask, window, epsilon, shared, True, True)


def _check(
    fixed: Tensor, warped: Tensor, window: int, mask: Tensor | None, epsilon: float, shared: float
) -> Tensor | None:
    checks.check_volume("fixed", fixed, channels=1)
    checks.check_not_empty("fixed", fixed)
    checks.check_same("warped", warped, "fixed", fixed)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if not 0 <= shared <= epsilon:
        raise ValueError(f"shared must be in 0 ... epsilon, {epsilon}, got {shared}")
    if mask is None:
        return None
    if mask.shape != fixed.shape:
        raise ValueError(f"mask must be {list(fixed.shape)}, got {list(mask.shape)}")
    checks.check_device("mask", mask, fixed)
    return mask if mask.dtype == torch.bool else mask != 0


@torch.library.register_fake("deqreg::lncc")
def _(fixed: Tensor, warped: Tensor, mask: Tensor | None, window: int, epsilon: float, shared: float) -> Tensor:
    return fixed.new_empty(fixed.shape[:1], dtype=checks.coordinate_dtype(fixed))


@torch.library.register_fake("deqreg::lncc_gradient")
def _(
    fixed: Tensor,
    warped: Tensor,
    mask: Tensor | None,
    window: int,
    epsilon: float,
    shared: float,
    need_fixed: bool,
    need_warped: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    value = fixed.new_empty(fixed.shape[:1], dtype=checks.coordinate_dtype(fixed))
    grad_fixed, grad_warped = (value.new_empty(fixed.shape if need else (0,)) for need in (need_fixed, need_warped))
    return value, grad_fixed, grad_warped


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    fixed, warped, mask, ctx.window, ctx.epsilon, ctx.shared = inputs
    ctx.save_for_backward(fixed, warped, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
    fixed, warped, mask = ctx.saved_tensors
    need_fixed, need_warped = ctx.needs_input_grad[:2]
    _, grad_fixed, grad_warped = torch.ops.deqreg.lncc_gradient(
        fixed, warped, mask, ctx.window, ctx.epsilon, ctx.shared, need_fixed, need_warped
    )
    grad = grad.view(-1, *[1] * (fixed.ndim - 1))
    by_fixed = (grad_fixed * grad).to(fixed.dtype) if need_fixed else None
    by_warped = (grad_warped * grad).to(warped.dtype) if need_warped else None
    return by_fixed, by_warped, None, None, None, None


torch.library.register_autograd("deqreg::lncc", _backward, setup_context=_setup_context)
torch.library.register_autocast("deqreg::lncc", "cuda", torch.float32)
forbid_second_derivative("deqreg::lncc_gradient")
