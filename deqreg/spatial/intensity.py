"""The range of intensities that updates and networks are given."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def scale_intensities(data: Tensor, inside: Tensor | None = None, *, flat: bool = True) -> Tensor:
    """An image with its intensities in [0, 1], outliers clipped, and what lies outside of its mask made flat.

    The quantiles 0.001 and 0.999 become 0 and 1: of the mask where there is one, else of what is not background where a
    fifth of the image or more is. Outside of a mask the image becomes 1. A constant image becomes 0.

    Args:
        data: `[*S]`, any units.
        inside: `[*S]`, above zero inside of the mask.
        flat: whether the image becomes 1 outside of the mask.

    Returns:
        `[*S]`.

    Raises:
        ValueError: the mask is empty.

    >>> scaled = scale_intensities(torch.linspace(-1000, 1000, 2001)[None])
    >>> [round(value, 1) for value in scaled[0, ::500].tolist()]
    [0.0, 0.2, 0.5, 0.8, 1.0]
    """
    # numpy masks and selects several times faster than torch does on a CPU
    values = data.cpu().numpy()
    sample = values if inside is None else values[inside.cpu().numpy() > 0]
    if sample.size == 0:
        raise ValueError("the mask must have a voxel above zero, got none")
    if inside is None:
        shown = values > values.min()
        if 0 < np.count_nonzero(shown) < 0.8 * values.size:
            sample = values[shown]  # an empty background would shift the quantiles
    sample = sample.ravel()[:: max(1, sample.size // 1_000_000)]
    low, high = (float(q) for q in np.quantile(sample, (0.001, 0.999)))
    if high <= low:
        low, high = float(data.min()), float(data.max())
    scaled = (data - low).div_((high - low) or 1.0).clamp_(0, 1)
    return scaled if inside is None or not flat else torch.where(inside > 0, scaled, torch.ones_like(scaled))
