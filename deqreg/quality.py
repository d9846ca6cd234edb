"""Whether a registration can be believed, told from the images and the field alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from deqreg import metrics, ops
from deqreg.io import Volume
from deqreg.spatial import scale_intensities

# What is darker than this share of the intensity range in both images, when no mask says where to look, is background.
_BACKGROUND = 0.05
# Variance of the noise that a window has to exceed to count as alike: one per cent of the intensity range.
_NOISE = 1e-4
# Wrong pairs buy their likeness with an uneven field: likeness / unevenness^1.5 is lower. Of the powers 1, 1.5 and 2
# this one parts them best (docs/quality.md).
_POWER = 1.5
# Edge of the similarity's window. As many voxels in 2-D as in 3-D, about: the fewer there are, the more likeness a
# wrong pair can buy.
_WINDOWS = {3: 9, 2: 27}
# What parts right from wrong, by the number of axes. Part of a slice has no partner in the other: right pairs pay more.
_PRICES = {3: 2.1, 2: 1.5}
# The same where the body is cut off: at the rims of what both images hold right pairs pay more, wrong ones far more so.
_CUT_PRICE = 1.15
# Of whole heads nothing shows on the faces of the image, of lungs and of boxes three quarters and more.
_CUT = 0.5
# Between what images hold in common by chance (noise, other organs: at most 0.22) and the least of a right pair, 0.38.
_LEAST_SIMILARITY = 0.25
# Right pairs have none, or single voxels; a field that is not smooth has percents of them.
_MOST_FOLDING = 0.1
# A newborn's brain is a third of an adult's, a lung breathes out to a fifth of itself.
_VOLUME_RATIO = 6.0


@dataclass(frozen=True)
class Quality:
    """Whether a registration can be believed, and why not.

    Attributes:
        verdict: `"plausible"`, or `"failed"` where there is a reason.
        reasons: a sentence for each thing that is wrong.
        local_similarity: mean squared local correlation of fixed and warped where either shows something, 0 to 1; in
            windows of 9 voxels, of 27 in 2-D.
        needed_similarity: the least that makes a field as uneven as this one believable.
        folding_percent: of the voxels, in the mask where there is one.
        sd_log_jacobian: spread of the logarithm of the local volume change, there.
        affine_volume_ratio: determinant of the affine start.
    """

    verdict: str
    reasons: tuple[str, ...]
    local_similarity: float
    needed_similarity: float
    folding_percent: float
    sd_log_jacobian: float
    affine_volume_ratio: float


def assess(
    fixed: Volume,
    warped: Tensor,
    displacement: Tensor,
    affine: np.ndarray,
    mask: Tensor | None = None,
    reached: Tensor | None = None,
) -> Quality:
    """Judge a registration by the likeness it reached and the deformation it took.

    Failed is what leaves the images unlike, `s < 0.25`; what buys its likeness with an uneven field,
    `s < p sd(log J)^1.5`; what folds in more than 0.1 % of the voxels; and what an affine start made six times as
    large or as small. The price `p` is 2.1, in 2-D 1.5; where, without a mask, more than half of the fixed image's
    faces show something, so that the body goes on beyond them, it is 1.15. It can't tell a head from its
    mirror image: the two sides differ less than two people do.

    Args:
        fixed: the image that stays.
        warped: `[*S]`, the moving image on its grid.
        displacement: `[d, *S]`, RAS millimetres.
        affine: `[d + 1, d + 1]`, the world map that the deformation started from.
        mask: `[*S]`, above zero where to look.
        reached: `[*S]`, true where the moving image has voxels, all by default: elsewhere there is nothing to compare.

    Returns:
        The verdict, its reasons and the figures it rests on.

    Raises:
        ValueError: shapes that do not fit.

    >>> import torch
    >>> image = Volume(ops.gaussian(torch.rand(1, 1, 16, 16, 16), 1.0)[0, 0], np.eye(4))
    >>> assess(image, image.data, torch.zeros(3, 16, 16, 16), np.eye(4)).verdict
    'plausible'
    >>> assess(image, torch.rand(16, 16, 16), torch.zeros(3, 16, 16, 16), np.eye(4)).reasons[0][:28]
    'The images are unlike after '
    """
    f, w = (scale_intensities(image.float(), mask) for image in (fixed.data, warped))
    similarity = _local_similarity(f, w, mask, reached)
    measured = metrics.regularity(displacement, fixed.matrix, mask)
    folding, unevenness = measured["folding_percent"], measured["sd_log_jacobian"]
    needed = max(_LEAST_SIMILARITY, _price(f, mask) * unevenness**_POWER)
    ratio = float(np.linalg.det(affine))
    reasons = []
    if similarity < _LEAST_SIMILARITY:
        reasons.append(
            f"The images are unlike after registration: mean squared local correlation {similarity:.2f}, where right "
            f"pairs have more than {_LEAST_SIMILARITY:g}."
        )
    elif similarity < needed:
        reasons.append(
            f"The field is too uneven for the likeness it brings: a sd log Jacobian of {unevenness:.2f} needs a mean "
            f"squared local correlation of {needed:.2f}, got {similarity:.2f}."
        )
    if folding > _MOST_FOLDING:
        reasons.append(f"The field folds in {folding:.2g} % of the voxels.")
    if not 1 / _VOLUME_RATIO < ratio < _VOLUME_RATIO:
        reasons.append(f"The affine start changes volumes {ratio:.2g} times.")
    return Quality(
        verdict="failed" if reasons else "plausible",
        reasons=tuple(reasons),
        local_similarity=similarity,
        needed_similarity=needed,
        folding_percent=folding,
        sd_log_jacobian=unevenness,
        affine_volume_ratio=ratio,
    )


def _price(f: Tensor, mask: Tensor | None) -> float:
    """What a unit of unevenness, to its power, has to bring in likeness to an image in [0, 1]."""
    return _CUT_PRICE if mask is None and _share_of_faces(f > _BACKGROUND) > _CUT else _PRICES[f.ndim]


def _share_of_faces(shown: Tensor) -> float:
    """The part of the outermost voxels that is true."""
    inner = shown[(slice(1, -1),) * shown.ndim]
    return float(shown.sum() - inner.sum()) / (shown.numel() - inner.numel())


def _local_similarity(f: Tensor, w: Tensor, mask: Tensor | None, reached: Tensor | None) -> float:
    """Mean squared local correlation over the mask, or over what is brighter than background in either image."""
    look = (f > _BACKGROUND) | (w > _BACKGROUND) if mask is None else mask > 0
    if reached is not None:
        look &= reached
    images = f[None, None], w[None, None]
    return float(ops.lncc(*images, window=_WINDOWS[f.ndim], mask=look[None, None], epsilon=_NOISE))
