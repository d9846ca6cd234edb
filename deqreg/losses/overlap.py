"""The overlap of labels, for any number of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def soft_dice(displacement: Tensor, fixed_labels: Tensor, moving_labels: Tensor, labels: int) -> Tensor:
    """One minus the mean over labels of `2 sum_x F_l(x) W_l(x) / (sum_x F_l(x) + sum_x W_l(x))`.

    `F_l` is 1 where the fixed label is `l`, and `W_l` is the same map of the moving labels, warped with linear
    interpolation. No map of a label is ever made: `W_l(x)` is the sum of the weights of those corners around `x + u(x)`
    whose label is `l`, so both sums are histograms over corners and take 2^d passes over the voxels, whatever the
    number of labels.

    Args:
        displacement: `u`, `[N, d, *S]`, in voxels.
        fixed_labels: `[N, *S]`, integers 0 ... labels - 1; 0 is background, which does not count.
        moving_labels: as fixed_labels.
        labels: how many values there are, background included.

    Returns:
        `[N]`, in [0, 1], the mean over the labels that both images have; 0 where they have none in common.
        Differentiable, once, by the displacement.

    Raises:
        ValueError: when shapes disagree, or labels are out of range or no integers.

    Reference: Milletari et al., V-Net, 3DV 2016, sec. 3, with plain sums in the denominator as in the metric.

    >>> parcels = torch.tensor([[[0, 1, 1, 2], [0, 1, 1, 2]]])
    >>> soft_dice(torch.zeros(1, 2, 2, 4), parcels, parcels, 3).item()
    0.0
    """
    expected = torch.Size((displacement.shape[0], *displacement.shape[2:]))
    for name, given in (("fixed_labels", fixed_labels), ("moving_labels", moving_labels)):
        if given.shape != expected or given.is_floating_point():
            raise ValueError(f"{name} must be {list(expected)} integers, got {list(given.shape)} {given.dtype}")
        low, high = given.aminmax() if given.numel() else (0, 0)
        if int(low) < 0 or int(high) >= labels:
            raise ValueError(f"{name} must be in 0 ... {labels - 1}, got {int(low)} ... {int(high)}")
    losses = []
    for u, f, m in zip(displacement, fixed_labels, moving_labels, strict=True):
        f, m = f.flatten().long(), m.flatten().long()
        in_fixed, in_moving = (torch.bincount(part, minlength=labels).to(u.dtype) for part in (f, m))
        both, warped = _Overlap.apply(u, f, m, labels)
        counted = (in_fixed > 0) & (in_moving > 0)
        counted[0] = False
        # a label of which nothing is left inside still has its fixed voxels below the line
        scores = (2 * both / (in_fixed + warped).clamp(min=1))[counted]
        losses.append(1 - scores.mean() if len(scores) else scores.sum())
    return torch.stack(losses)


class _Overlap(torch.autograd.Function):
    """`(sum_x F_l W_l, sum_x W_l)` for all labels, keeping nothing but its arguments."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, fixed: Tensor, moving: Tensor, labels: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(u, fixed, moving)
        # a sum over millions of voxels in float32 would lose the last of them
        both, warped = (torch.zeros(labels, dtype=torch.float64, device=u.device) for _ in range(2))
        low, fraction = _cells(u)
        for corner, index in _corners(low, u.shape[1:]):
            weight = torch.stack(_factors(fraction, corner)).prod(0).double()
            label = moving[index]
            warped.index_add_(0, label, weight)
            both.index_add_(0, fixed, weight.mul_(label == fixed))
        return both.to(u.dtype), warped.to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator hides the names
        ctx: Any, by_both: Tensor, by_warped: Tensor
    ) -> tuple[Tensor, None, None, None]:
        u, fixed, moving = ctx.saved_tensors
        low, fraction = _cells(u)
        gradient = torch.zeros_like(fraction)
        by_both = by_both[fixed]
        for corner, index in _corners(low, u.shape[1:]):
            label = moving[index]
            by_weight = by_warped[label] + by_both * (label == fixed)
            factors = _factors(fraction, corner)
            for axis, bit in enumerate(corner):
                others = torch.stack(factors[:axis] + factors[axis + 1 :]).prod(0)
                gradient[axis].add_(by_weight * others, alpha=1 if bit else -1)
        # beyond the grid positions are held at its border: nothing changes there
        for axis, size in enumerate(u.shape[1:]):
            position = _position(u, axis)
            gradient[axis] *= (position >= 0) & (position <= size - 1)
        return gradient.view(u.shape), None, None, None


def _position(u: Tensor, axis: int) -> Tensor:
    """Where each voxel is sampled along an axis, `[V]`."""
    index = torch.arange(u.shape[axis + 1], dtype=u.dtype, device=u.device)
    return (u[axis] + index.view(-1, *[1] * (u.ndim - 2 - axis))).flatten()


def _cells(u: Tensor) -> tuple[Tensor, Tensor]:
    """The lower corner around each sampled position, `[d, V]` int64, and how far above it that lies, `[d, V]`."""
    lows, fractions = [], []
    for axis, size in enumerate(u.shape[1:]):
        position = _position(u, axis).clamp_(0, size - 1)
        low = position.floor().clamp_(max=max(size - 2, 0))
        lows.append(low.long())
        fractions.append(position.sub_(low))
    return torch.stack(lows), torch.stack(fractions)


def _corners(low: Tensor, shape: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Each corner of the cells, as bits along the axes, and its voxels' flat indices, `[V]`."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    base = torch.stack([part * stride for part, stride in zip(low, strides, strict=True)]).sum(0)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        if all(size > 1 or not bit for bit, size in zip(corner, shape, strict=True)):
            yield corner, base + sum(bit * stride for bit, stride in zip(corner, strides, strict=True))


def _factors(fraction: Tensor, corner: tuple[int, ...]) -> list[Tensor]:
    """The corner's weight as one factor an axis."""
    return [part if bit else 1 - part for part, bit in zip(fraction, corner, strict=True)]
