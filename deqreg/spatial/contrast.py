"""One image in the contrast of another, so that they can be compared voxel by voxel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from deqreg.spatial.affine import Image
from deqreg.spatial.grid import Grid
from deqreg.spatial.intensity import background, scale_intensities, thinned
from deqreg.spatial.resample import resample

# Fine enough for the peaks of tissue, coarse enough for thousands of voxels in each; smoothed over two of them.
_BINS, _SMOOTH = 64, 2.0


def contrast_is_reversed(fixed: Image, moving: Image, world: Tensor) -> bool:
    """Whether bright in one image is dark in the other, as in T1 and T2: their correlation is negative.

    Args:
        fixed: the image that stays.
        moving: the image to compare.
        world: `[d + 1, d + 1]`, fixed to moving points, RAS millimetres, under which they are about aligned.

    Returns:
        Where both show something, over their foregrounds or masks; False where they have nothing in common.

    >>> from deqreg.spatial import Grid
    >>> grid, ramp = Grid((4, 4), torch.eye(3, dtype=torch.float64)), torch.linspace(0, 1, 16).view(1, 1, 4, 4)
    >>> contrast_is_reversed(Image(1 - ramp, grid), Image(ramp, grid), torch.eye(3, dtype=torch.float64))
    True
    """
    # an eighth of the voxels tells the sign as well
    f, m = _where_both_show(_every_second(fixed), moving, world, antialias=False)
    return f.numel() > 1 and float(((f - f.mean()) * (m - m.mean())).sum()) < 0


def match_contrast(fixed: Image, moving: Image, world: Tensor) -> Image:
    """The moving image with each intensity replaced by what the fixed image shows there on average.

    `moving'(x) = E[fixed | moving = moving(x)]`, over the voxels where both show something: the map whose residual the
    correlation ratio measures. Background stays the darkest; with masks of both, what lies outside of the moving one is
    flat. The whole is scaled to [0, 1] as the images are.

    Args:
        fixed: the image whose contrast is taken.
        moving: the image to change.
        world: `[d + 1, d + 1]`, fixed to moving points, RAS millimetres, under which they are about aligned.

    Returns:
        The moving image, on its grid; unchanged where the two have nothing in common.

    Reference: Roche et al., The correlation ratio as a new similarity measure for multimodal image registration,
    MICCAI 1998, eq. 3.

    >>> from deqreg.spatial import Grid
    >>> grid = Grid((40, 40), torch.eye(3, dtype=torch.float64))
    >>> ramp = torch.linspace(0, 1, 1600).view(1, 1, 40, 40)
    >>> matched = match_contrast(Image(1 - ramp, grid), Image(ramp, grid), torch.eye(3, dtype=torch.float64))
    >>> bool((matched.data - (1 - ramp))[ramp > 0].abs().max() < 0.05)
    True
    """
    f, m = _where_both_show(fixed, moving, world)
    if f.numel() == 0:
        return moving
    low, high = (float(q) for q in np.quantile(thinned(m.cpu().numpy(), fixed.data.shape[-1]), (0.005, 0.995)))
    width = max(high - low, 1e-6) / _BINS
    index = ((m - low) / width).clamp_(0, _BINS - 1).long()
    count, total = (m.new_zeros(_BINS).index_add_(0, index, values) for values in (torch.ones_like(f), f))
    offsets = torch.arange(_BINS, device=m.device, dtype=m.dtype)
    weights = torch.exp(-((offsets[:, None] - offsets) ** 2) / (2 * _SMOOTH**2))
    means = (weights @ total) / (weights @ count).clamp_min(1e-6)
    place = ((moving.data - low) / width - 0.5).clamp_(0, _BINS - 1.001)
    below = place.long()
    seen = torch.lerp(means[below], means[below + 1], place - below)
    shown = _foreground(moving.data, moving.mask)
    # averages span less than the range: stretched again, lest the similarity take what is left for noise
    inside = None if moving.mask is None else moving.mask[0, 0]
    stretched = scale_intensities(torch.where(shown, seen, 0.0)[0, 0], inside, flat=fixed.mask is not None)
    return replace(moving, data=stretched[None, None])


def _every_second(image: Image) -> Image:
    """The image without every second voxel along each axis, not smoothed: that would mix tissue with background."""
    grid, every = image.grid, (..., *[slice(None, None, 2)] * image.grid.dims)
    voxels = torch.diag(grid.affine.new_tensor([2.0] * grid.dims + [1.0]))
    data, mask = image.data[every], None if image.mask is None else image.mask[every]
    return replace(image, data=data, mask=mask, grid=Grid(tuple(data.shape[2:]), grid.affine @ voxels))


def _foreground(data: Tensor, mask: Tensor | None) -> Tensor:
    return data > background(data[0, 0]) if mask is None else mask > 0


def _where_both_show(fixed: Image, moving: Image, world: Tensor, *, antialias: bool = True) -> tuple[Tensor, Tensor]:
    """Intensities `[K]` of both images at the fixed voxels that are foreground, or inside of the masks, of both."""
    image = resample(moving.data, moving.grid, fixed.grid, world, antialias=antialias)
    shown = _foreground(moving.data, moving.mask).to(moving.data)
    shown = resample(shown, moving.grid, fixed.grid, world, interpolation="nearest", padding="zeros") > 0
    both = shown & _foreground(fixed.data, fixed.mask)
    return _selected(fixed.data, both), _selected(image, both)


def _selected(image: Tensor, where: Tensor) -> Tensor:
    # numpy selects several times faster than torch does on a CPU
    return torch.from_numpy(image.cpu().numpy()[where.cpu().numpy()]).to(image.device)
