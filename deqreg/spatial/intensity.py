"""The range of intensities that updates and networks are given."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# A background that was cut out has the same value everywhere, off what an interpolation left around its rim.
_LEAST_BACKGROUND, _MOST_BELOW = 0.1, 0.01
# Values that quantiles are taken of, about.
_SAMPLE = 1_000_000


def background(data: Tensor) -> float:
    """The value of what shows nothing: the common one of the faces where it was cut out, else the lowest.

    Spline interpolation leaves voxels below the background around a skull-stripped head: they are background too.

    Args:
        data: `[*S]`, any units.

    Returns:
        Foreground is what is above.

    >>> image = torch.zeros(19, 19)
    >>> image[3:9, 3:9], image[2, 2] = 5.0, -0.1
    >>> background(image)
    0.0
    """
    lowest = float(data.min())
    faces = torch.cat([data.select(axis, end).flatten() for axis in range(data.ndim) for end in (0, -1)])
    common = float(faces.median())
    if common == lowest:
        return lowest
    values = data.cpu().numpy()  # which counts several times faster than torch does on a CPU
    same, below = (np.count_nonzero(chosen) / values.size for chosen in (values == common, values < common))
    return common if same > _LEAST_BACKGROUND and below < _MOST_BELOW else lowest


def thinned(values: np.ndarray, row: int) -> np.ndarray:
    """About a million of the values of an image, or all of them, evenly spread.

    Args:
        values: of any shape; taken in their order.
        row: voxels along the image's fastest axis. The step shares no divisor with it: one would leave out planes.

    >>> thinned(np.arange(40_000_000).reshape(-1, 20), 20)[:3].tolist()
    [0, 41, 82]
    """
    step = max(1, values.size // _SAMPLE)
    while math.gcd(step, row) > 1:
        step += 1
    return values.ravel()[::step]


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
        shown = values > background(data)
        if 0 < np.count_nonzero(shown) < 0.8 * values.size:
            sample = values[shown]  # an empty background would shift the quantiles
    low, high = (float(q) for q in np.quantile(thinned(sample, data.shape[-1]), (0.001, 0.999)))
    if high <= low:
        low, high = float(data.min()), float(data.max())
    scaled = (data - low).div_((high - low) or 1.0).clamp_(0, 1)
    return scaled if inside is None or not flat else torch.where(inside > 0, scaled, torch.ones_like(scaled))
