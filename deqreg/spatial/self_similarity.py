"""Descriptors of local structure that do not depend on an image's contrast."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from deqreg import ops
from deqreg.spatial.resample import resize

# Width of the patches that are compared, in voxels: patches of three voxels an axis, with a soft rim.
_PATCH = 0.8
# A patch's variance is taken to be at least this part of the image's mean one: flat regions describe nothing but noise.
_LEAST_VARIANCE = 0.01


def self_similarity(image: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """How alike the neighbours of a voxel are to each other: descriptors of structure, whatever the contrast.

    `S_ab(x) = exp(-D_ab(x) / V(x))` for the pairs of nearest neighbours `x + a`, `x + b` that touch along a diagonal,
    `D_ab` the squared difference of the patches around them, less the smallest over the pairs, and `V` its mean over
    them. Brighter, darker or inverted, an image has the same descriptors. It is extended by its outermost voxels.

    Args:
        image: `[N, 1, *S]`, 2-D or 3-D.
        shape: the grid that the descriptors are wanted on, over the same extent; that of the image if not given.

    Returns:
        `[N, 2 d (d - 1), *shape]`, in (0, 1]; 1 where the image is flat.

    Raises:
        ValueError: the image has another shape or more than one channel.

    Reference: Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using
    self-similarities, MICCAI 2013 (LNCS 8149:187-194), with a Gaussian patch.

    >>> import torch
    >>> image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(self_similarity(image), self_similarity(1 - 0.5 * image), atol=1e-4)
    True
    """
    dims = image.ndim - 2
    if dims not in (2, 3) or image.shape[1] != 1:
        raise ValueError(f"image must be [N, 1, *S] of 2 or 3 axes, got {list(image.shape)}")
    onto = image.shape[2:] if shape is None else shape
    padded = functional.pad(image, [1] * (2 * dims), mode="replicate")

    def neighbour(axis: int, side: int) -> Tensor:
        at = [1] * dims
        at[axis] += side
        return padded[(..., *(slice(begin, begin + size) for begin, size in zip(at, image.shape[2:], strict=True)))]

    arms = [(axis, side) for axis in range(dims) for side in (-1, 1)]
    pairs = [(a, b) for a, b in combinations(arms, 2) if a[0] != b[0]]

    def difference(a: tuple[int, int], b: tuple[int, int]) -> Tensor:
        return ops.gaussian((neighbour(*a) - neighbour(*b)).square(), _PATCH)

    # every pair twice, and never all at once: of an image's size there are four volumes, whatever the pairs
    least, variance = torch.full_like(image, torch.inf), torch.zeros_like(image)
    for pair in pairs:
        found = difference(*pair)
        variance.add_(found, alpha=1 / len(pairs))
        torch.minimum(least, found, out=least)
    variance -= least
    floor = variance.mean(dim=tuple(range(1, dims + 2)), keepdim=True) * _LEAST_VARIANCE
    variance = torch.maximum(variance, floor).clamp_min_(torch.finfo(image.dtype).tiny)
    return torch.cat([resize((least - difference(*pair)).div_(variance).exp_(), onto) for pair in pairs], dim=1)
