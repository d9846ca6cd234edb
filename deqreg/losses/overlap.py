"""The overlap of labels, for any number of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from deqreg.ops.autograd import check_not_recorded


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
        in_fixed, in_moving = (torch.bincount(part.flatten(), minlength=labels).to(u.dtype) for part in (f, m))
        both, warped = _Overlap.apply(u, f, m, labels)
        counted = (in_fixed > 0) & (in_moving > 0)
        counted[0] = False
        # a label of which nothing is left inside still has its fixed voxels below the line
        scores = (2 * both / (in_fixed + warped).clamp(min=1))[counted]
        losses.append(1 - scores.mean() if len(scores) else scores.sum())
    return torch.stack(losses)


class _Overlap(torch.autograd.Function):
    """`(sum_x F_l W_l, sum_x W_l)` for all labels but the background, keeping nothing but its arguments."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, fixed: Tensor, moving: Tensor, labels: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(u, fixed, moving)
        # a sum over millions of voxels in float32 would lose the last of them
        both, warped = (torch.zeros(labels, dtype=torch.float64, device=u.device) for _ in range(2))
        cells = _Cells(u, fixed, moving)
        for corner, label in cells.corners():
            weight = torch.stack(cells.factors(corner)).prod(0).double()
            warped.index_add_(0, label.int(), weight)
            both.index_add_(0, cells.fixed.int(), weight.mul_(label == cells.fixed))
        return both.to(u.dtype), warped.to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        check_not_recorded("soft_dice")
        by_both, by_warped = grad_outputs
        u, fixed, moving = ctx.saved_tensors
        cells = _Cells(u, fixed, moving)
        gradient = torch.zeros_like(cells.fraction)
        by_both = by_both[cells.fixed.int()]
        for corner, label in cells.corners():
            by_weight = by_warped[label.int()] + by_both * (label == cells.fixed)
            factors = cells.factors(corner)
            for axis, bit in enumerate(corner):
                others = torch.stack(factors[:axis] + factors[axis + 1 :]).prod(0)
                gradient[axis].add_(by_weight * others, alpha=1 if bit else -1)
        by_displacement = torch.zeros_like(u).flatten(1)
        by_displacement[:, cells.kept] = gradient
        # beyond the grid positions are held at its border: nothing changes there
        for axis, size in enumerate(u.shape[1:]):
            position = _position(u, axis)
            by_displacement[axis] *= (position >= 0) & (position <= size - 1)
        return by_displacement.view(u.shape), None, None, None


class _Cells:
    """Where each voxel is sampled, for those that are not background and sampled from background alone.

    Attributes:
        kept: `[K]`, the flat indices of these voxels.
        fixed: `[K]`, their fixed labels.
        fraction: `[d, K]`, how far each sampled position lies above the lower corner of its cell.
    """

    def __init__(self, u: Tensor, fixed: Tensor, moving: Tensor) -> None:
        self.shape = u.shape[1:]
        self.strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        base, fractions = torch.zeros(fixed.numel(), dtype=torch.int64, device=u.device), []
        for axis, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            position = _position(u, axis).clamp_(0, size - 1)
            # no number is no index either; it stays one in the fraction
            low = position.floor().clamp_(max=max(size - 2, 0)).nan_to_num_(0)
            base.add_(low.long(), alpha=stride)
            fractions.append(position.sub_(low))
        touched = moving > 0
        for axis, size in enumerate(self.shape):
            touched.narrow(axis, 0, size - 1).logical_or_(touched.narrow(axis, 1, size - 1).clone())
        self.kept = ((fixed.flatten() > 0) | touched.flatten()[base]).nonzero()[:, 0]
        self.fixed, self.base = fixed.flatten()[self.kept], base[self.kept]
        self.fraction = torch.stack([part[self.kept] for part in fractions])
        self.moving = moving.flatten()

    def corners(self) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Each corner of the cells, as bits along the axes, and the moving labels there, `[K]`."""
        for corner in itertools.product((0, 1), repeat=len(self.shape)):
            if all(size > 1 or not bit for bit, size in zip(corner, self.shape, strict=True)):
                step = sum(bit * stride for bit, stride in zip(corner, self.strides, strict=True))
                yield corner, self.moving[self.base + step]

    def factors(self, corner: tuple[int, ...]) -> list[Tensor]:
        """The corner's weight as one factor an axis."""
        return [part if bit else 1 - part for part, bit in zip(self.fraction, corner, strict=True)]


def _position(u: Tensor, axis: int) -> Tensor:
    """Where each voxel is sampled along an axis, `[V]`."""
    index = torch.arange(u.shape[axis + 1], dtype=u.dtype, device=u.device)
    return (u[axis] + index.view(-1, *[1] * (u.ndim - 2 - axis))).flatten()
