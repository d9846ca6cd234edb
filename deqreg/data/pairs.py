"""Pairs of cases, in an order that a seed fixes and any place of which can be asked for, as batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deqreg import ops
from deqreg.data.augmentation import Augmentation
from deqreg.data.cache import CachedCase
from deqreg.data.dataset import Case
from deqreg.spatial import sample

Points = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sampler:
    """An endless shuffled sequence of 0 ... count - 1: each pass holds every number once.

    Any place of it can be computed from the seed alone, so that a training resumes, and several processes share it,
    by counting.

    Args:
        count: how many there are.
        seed: of the shuffling, and of the generators.

    >>> sampler = Sampler(3, seed=0)
    >>> sorted(sampler[i] for i in range(3)), sampler[4] == Sampler(3, seed=0)[4]
    ([0, 1, 2], True)
    """

    count: int
    seed: int
    _pass: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.count < 1 or self.seed < 0:
            raise ValueError(f"count must be at least 1 and seed at least 0, got {self.count} and {self.seed}")

    def __getitem__(self, place: int) -> int:
        """The number at a place."""
        number, within = divmod(place, self.count)
        if number not in self._pass:
            self._pass.clear()
            self._pass[number] = torch.randperm(self.count, generator=_generator(self.seed, 0, number))
        return int(self._pass[number][within])

    def generator(self, place: int, stream: int = 0) -> torch.Generator:
        """Random numbers for whatever else is drawn at a place; other streams are independent of each other."""
        return _generator(self.seed, 1, place, stream)


def _generator(*entropy: int) -> torch.Generator:
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed >> 1)  # torch takes signed ones


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs for a network and its losses, all on one device.

    Attributes:
        fixed: `[N, 1, *S]`, in [0, 1], what the losses compare.
        moving: as fixed.
        fixed_input: as fixed, what the network is shown: with the augmentation of intensities.
        moving_input: as fixed_input.
        spacing: voxel edges, millimetres, of all its fixed images.
        fixed_labels: `[N, *S]`, integers 0 ... labels - 1, where any has them; all background for those without.
        moving_labels: as fixed_labels.
        labels: how many values there are, background included.
        fixed_mask: `[N, 1, *S]`, bool, where any has one; everywhere inside for those without.
        truth: `[N, d, *S]`, the displacement of synthetic pairs, in voxels, where there are any.
        known: `[N]`, bool: which are synthetic.
        points: fixed and moving landmarks of each pair, `[1, P, d]`, in voxels, where it has them.
    """

    fixed: Tensor
    moving: Tensor
    fixed_input: Tensor
    moving_input: Tensor
    spacing: tuple[float, ...]
    fixed_labels: Tensor | None
    moving_labels: Tensor | None
    labels: int
    fixed_mask: Tensor | None
    truth: Tensor | None
    known: Tensor
    points: tuple[Points | None, ...]


@dataclass(eq=False)
class _Side:
    """One image of a pair and what belongs to it, while it is augmented."""

    image: Tensor
    labels: Tensor | None
    mask: Tensor | None
    points: Tensor | None

    def mirrored(self, axis: int) -> _Side:
        size = self.image.shape[axis + 2]
        points = self.points
        if points is not None:
            points = points.clone()
            points[..., axis] = size - 1 - points[..., axis]
        labels, mask = (None if part is None else part.flip(axis + 2) for part in (self.labels, self.mask))
        return _Side(self.image.flip(axis + 2), labels, mask, points)

    def deformed(self, velocity: Tensor) -> _Side:
        """As seen through `x + exp(v)(x)`; what was at `p` is then at `p + exp(-v)(p)`."""
        u = ops.exponential(velocity)
        labels, mask = (
            None if part is None else ops.warp(part.float(), u, interpolation="nearest").to(part.dtype)
            for part in (self.labels, self.mask)
        )
        points = None if self.points is None else self.points + sample(ops.exponential(-velocity), self.points)
        return _Side(ops.warp(self.image, u), labels, mask, points)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """An augmented pair, what the network is shown of it, its voxels, and the displacement where it is known."""

    fixed: _Side
    moving: _Side
    fixed_input: Tensor
    moving_input: Tensor
    spacing: tuple[float, ...]
    truth: Tensor | None


class Pairs:
    """A sequence of pairs of cached cases.

    Args:
        pairs: fixed and moving.
        cases: in memory, by the file of their image.
        seed: of the order and of the augmentation.
        augmentation: what happens to them at random.

    Raises:
        ValueError: when the two images of a pair differ in shape or spacing, or lack an axis that is to be mirrored.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Case, Case]],
        cases: Mapping[Path, CachedCase],
        seed: int = 0,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  frozen
    ) -> None:
        self.pairs = [(cases[fixed.image], cases[moving.image]) for fixed, moving in pairs]
        self.augmentation = augmentation
        self.sampler = Sampler(len(self.pairs), seed)
        for fixed, moving in self.pairs:
            if fixed.stored.shape != moving.stored.shape:
                raise ValueError(
                    f"the images of a pair must have one shape, got {list(fixed.stored.shape)} for {fixed.name} "
                    f"and {list(moving.stored.shape)} for {moving.name}; resample them onto one grid first"
                )
            if not _same_spacing(fixed.spacing, moving.spacing):
                raise ValueError(
                    f"the images of a pair must have one voxel spacing, got {list(fixed.spacing)} mm for {fixed.name} "
                    f"and {list(moving.spacing)} mm for {moving.name}; resample them onto one grid first"
                )
            if max(augmentation.flip, default=0) >= fixed.stored.ndim:
                raise ValueError(
                    f"augmentation.flip must name axes of the images, below {fixed.stored.ndim}, "
                    f"got {list(augmentation.flip)}"
                )

    def __len__(self) -> int:
        """How many pairs one pass holds."""
        return len(self.pairs)

    def shuffled(self, places: Sequence[int], device: torch.device) -> Batch:
        """The pairs at these places of the endless shuffled sequence, augmented."""
        drawn = [self._augmented(self.sampler[p], self.sampler.generator(p), device) for p in places]
        return self._collated(drawn)

    def listed(self, number: int, device: torch.device) -> Batch:
        """One pair as it was listed, unchanged."""
        fixed, moving = (_side(case, device) for case in self.pairs[number])
        return self._collated([_Drawn(fixed, moving, fixed.image, moving.image, self.pairs[number][0].spacing, None)])

    def _collated(self, drawn: Sequence[_Drawn]) -> Batch:
        return _collate(drawn, len(self.pairs[0][0].values))  # cases that are loaded together share their labels

    def _augmented(self, number: int, generator: torch.Generator, device: torch.device) -> _Drawn:
        how = self.augmentation
        spacing = self.pairs[number][0].spacing
        fixed, moving = (_side(case, device) for case in self.pairs[number])
        chances = torch.rand(5, generator=generator).tolist()  # the same count whatever is on
        shape = fixed.image.shape[2:]
        for axis, chance in zip(sorted(set(how.flip)), chances, strict=False):
            if chance < 0.5:
                fixed, moving = fixed.mirrored(axis), moving.mirrored(axis)
        truth = None
        if how.deform > 0 and chances[3] < how.deform:
            fixed, moving = (
                side.deformed(how.velocity(shape, spacing, generator).to(device)) for side in (fixed, moving)
            )
        if chances[4] < how.synthetic:
            velocity = how.velocity(shape, spacing, generator).to(device)
            fixed, truth = moving.deformed(velocity), ops.exponential(velocity)
        fixed_input = how.intensities(fixed.image, generator)
        return _Drawn(fixed, moving, fixed_input, how.intensities(moving.image, generator), spacing, truth)


def all_pairs(cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Every case with every other, both ways.

    >>> len(all_pairs([Case(Path("a")), Case(Path("b")), Case(Path("c"))]))
    6
    """
    return list(itertools.permutations(cases, 2))


def _side(case: CachedCase, device: torch.device) -> _Side:
    labels, mask = (None if part is None else part.to(device)[None, None] for part in (case.labels, case.mask))
    return _Side(case.image(device), labels, mask, None if case.points is None else case.points.to(device)[None])


def _collate(drawn: Sequence[_Drawn], labels: int) -> Batch:
    shapes = {tuple(pair.fixed.image.shape[2:]) for pair in drawn}
    if len(shapes) > 1:
        raise ValueError(f"the images of a batch must have one shape, got {sorted(shapes)}; set the batch to 1")
    spacing = drawn[0].spacing
    for pair in drawn:
        if not _same_spacing(pair.spacing, spacing):
            raise ValueError(
                f"the images of a batch must have one voxel spacing, got {list(spacing)} and {list(pair.spacing)} mm; "
                "set the batch to 1"
            )
    truths = [pair.truth for pair in drawn]
    truth = next((part for part in truths if part is not None), None)
    return Batch(
        fixed=torch.cat([pair.fixed.image for pair in drawn]),
        moving=torch.cat([pair.moving.image for pair in drawn]),
        fixed_input=torch.cat([pair.fixed_input for pair in drawn]),
        moving_input=torch.cat([pair.moving_input for pair in drawn]),
        spacing=spacing,
        fixed_labels=_labels([pair.fixed for pair in drawn]),
        moving_labels=_labels([pair.moving for pair in drawn]),
        labels=labels,
        fixed_mask=_stacked([pair.fixed.mask for pair in drawn], missing=1),
        truth=None if truth is None else torch.cat([torch.zeros_like(truth) if t is None else t for t in truths]),
        known=torch.tensor([part is not None for part in truths], device=drawn[0].fixed.image.device),
        points=tuple(_points(pair.fixed, pair.moving) for pair in drawn),
    )


def _same_spacing(one: Sequence[float], other: Sequence[float]) -> bool:
    # headers are rounded differently
    return all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one, other, strict=True))


def _labels(sides: Sequence[_Side]) -> Tensor | None:
    stacked = _stacked([side.labels for side in sides], missing=0)
    return None if stacked is None else stacked[:, 0]


def _stacked(parts: Sequence[Tensor | None], missing: int) -> Tensor | None:
    """The parts of all samples, `[N, 1, *S]`, those that are missing filled with a number; None where all are."""
    like = next((part for part in parts if part is not None), None)
    if like is None:
        return None
    return torch.cat([torch.full_like(like, missing) if part is None else part for part in parts])


def _points(fixed: _Side, moving: _Side) -> Points | None:
    if fixed.points is None or moving.points is None or fixed.points.shape != moving.points.shape:
        return None
    return fixed.points, moving.points
