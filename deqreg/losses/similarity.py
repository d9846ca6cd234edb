"""Losses of two images."""

from __future__ import annotations

from torch import Tensor

from deqreg import ops


def lncc(
    fixed: Tensor, warped: Tensor, *, window: int = 9, mask: Tensor | None = None, epsilon: float = 1e-4
) -> Tensor:
    """One minus the mean squared local correlation, `1 - ops.lncc(fixed, warped)`.

    Args:
        fixed: `[N, 1, *S]`, 2-D or 3-D, intensities of about [0, 1].
        warped: as fixed.
        window: edge of the window in voxels, odd.
        mask: `[N, 1, *S]`, nonzero where voxels count; all by default.
        epsilon: variance below which a window counts as flat. All of it is taken to be common to both images, so that
            flat windows agree and equal images are stationary. The default is a standard deviation of 1 % of the range.

    Returns:
        `[N]`, in [0, 1].

    Raises:
        ValueError: as `deqreg.ops.lncc`.

    Reference: Avants et al., Medical Image Analysis 2008 (12:26-41), eq. 5.

    >>> import torch
    >>> image = torch.linspace(0, 1, 60).view(1, 1, 3, 4, 5)
    >>> abs(float(lncc(image, image, window=3))) < 1e-6
    True
    """
    return 1 - ops.lncc(fixed, warped, window=window, mask=mask, epsilon=epsilon, shared=epsilon)


def mse(fixed: Tensor, warped: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The mean squared difference, `mean_x (fixed(x) - warped(x))^2`, of images of the same contrast.

    Args:
        fixed: `[N, C, *S]`.
        warped: as fixed.
        mask: `[N, 1, *S]`, nonzero where voxels count; all by default.

    Returns:
        `[N]`; 0 where a sample's mask is empty.

    Raises:
        ValueError: when the shapes disagree.

    >>> import torch
    >>> mse(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)).item()
    0.25
    """
    if fixed.shape != warped.shape:
        raise ValueError(f"fixed and warped must have one shape, got {list(fixed.shape)} and {list(warped.shape)}")
    squared = (fixed - warped).square()
    if mask is None:
        return squared.flatten(1).mean(1)
    if mask.shape != (fixed.shape[0], 1, *fixed.shape[2:]):
        raise ValueError(f"mask must be {[fixed.shape[0], 1, *fixed.shape[2:]]}, got {list(mask.shape)}")
    inside = (mask != 0).to(squared.dtype)
    counted = inside.flatten(1).sum(1) * fixed.shape[1]
    return (squared * inside).flatten(1).sum(1) / counted.clamp(min=1)
