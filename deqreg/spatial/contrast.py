"""One image in the contrast of another."""

from __future__ import annotations

import torch
from torch import Tensor

_KNOTS = 24  # tissues differ by more than a twenty-fourth of the range, and noise does not
# Weight of the curve's bends against a knot's average share of voxels: knots that hardly a voxel falls on follow their
# neighbours, the others their voxels. The second keeps an image of a single value solvable.
_BEND, _RIDGE = 1e-3, 1e-9


def match_contrast(image: Tensor, seen: Tensor, reference: Tensor) -> Tensor:
    """An image with the intensities that another one has, on average, at the same places.

    `t(image)`, the piecewise linear curve `t` that minimises `sum_x (t(seen(x)) - reference(x))^2`, the conditional
    mean of the reference given an intensity: T2 becomes a T1 as well as one intensity can tell.

    Args:
        image: what is changed, `[N, 1, *S_image]`, intensities in [0, 1].
        seen: the same image where it meets the reference, `[N, 1, *S]`.
        reference: `[N, 1, *S]`.

    Returns:
        `[N, 1, *S_image]`.

    Raises:
        ValueError: the shapes disagree.

    Reference: Roche et al., The correlation ratio, MICCAI 1998 (LNCS 1496:1115-1124), and, for a polynomial, Guimond et
    al., Adaptive intensity corrections, IEEE TMI 2001 (20:58-69).

    >>> import torch
    >>> image = torch.linspace(0, 1, 100).view(1, 1, 10, 10)
    >>> torch.allclose(match_contrast(image, image, 1 - 0.5 * image), 1 - 0.5 * image, atol=1e-4)
    True
    """
    if seen.shape != reference.shape or seen.shape[1] != 1 or image.shape[:2] != seen.shape[:2]:
        raise ValueError(
            f"seen and reference must be [N, 1, *S] of one shape and image [N, 1, *S_image], got {list(seen.shape)}, "
            f"{list(reference.shape)} and {list(image.shape)}"
        )
    pairs = zip(image, seen, reference, strict=True)
    return torch.stack([_on_curve(one, _curve(s, r).to(one)) for one, s, r in pairs])


def _place(image: Tensor) -> tuple[Tensor, Tensor]:
    """The knot below each intensity, and how far it lies past that, in knots."""
    position = image.clamp(0, 1) * (_KNOTS - 1)
    below = position.floor().clamp_(max=_KNOTS - 2)
    return below.long(), position - below


def _curve(seen: Tensor, reference: Tensor) -> Tensor:
    """The curve's values at its knots, `[_KNOTS]`, float64: least squares, by its tridiagonal normal equations."""
    below, past = (part.flatten() for part in _place(seen))
    past, wanted = past.double(), reference.flatten().double()

    def total(weight: Tensor) -> Tensor:
        return torch.bincount(below, weight, minlength=_KNOTS - 1)

    normal, right = past.new_zeros(_KNOTS, _KNOTS), past.new_zeros(_KNOTS)
    main, beside = normal.diagonal(), total(past * (1 - past))
    main[:-1] += total((1 - past).square())
    main[1:] += total(past.square())
    normal.diagonal(1).copy_(beside)
    normal.diagonal(-1).copy_(beside)
    right[:-1] += total((1 - past) * wanted)
    right[1:] += total(past * wanted)
    bend = torch.eye(_KNOTS, dtype=normal.dtype, device=normal.device).diff(n=2, dim=0)
    share = len(wanted) / _KNOTS
    normal += share * (_BEND * bend.T @ bend)
    main += share * _RIDGE
    return torch.linalg.solve(normal, right)


def _on_curve(image: Tensor, values: Tensor) -> Tensor:
    below, past = _place(image)
    return torch.lerp(values[below], values[below + 1], past)
