"""The classical update of both images at once, half-way between them: neither is the one that stays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deqreg import ops
from deqreg.nets.variational import Variational, VariationalUpdate


class SymmetricUpdate:
    """One step of two displacements of a grid half-way, `z = (a, b) -> f(z)`: fixed is seen at `a`, moving at `b`.

    `f(a, b) = G_field * (compose(a, -s / 2), compose(b, s / 2))`, with the step `s` of `VariationalUpdate` for a force
    `F = G_update * (dS/db - dS/da) / 2`, `S` being the similarity of `fixed o (id + a)` and `moving o (id + b)`. To
    exchange the images exchanges `a` and `b` and turns `s` around. Each goes half of a step, so that they approach each
    other by one, and both images' gradients pull.

    Features `F` and `M` of the two images, where they are given, pull beside the similarity:
    `-w |F o (id + a) - M o (id + b)|^2 / 2` is added to it at the field's voxels, `w` being the guidance.

    Args:
        fixed: `[N, 1, *S_fixed]`, scaled to about [0, 1].
        moving: `[N, 1, *S_moving]`, in the same contrast units.
        method: how the update moves.
        shape: voxels of the grid half-way, where the images are compared.
        field: the fields' spatial shape.
        spacing: voxel edges of the grid half-way, any unit.
        affines: its voxels to those of fixed and of moving, `[d, d + 1]` each, applied after the displacements.
        features: of fixed and of moving, `[N, C, *field]` each, on the grid half-way, or None.

    Raises:
        ValueError: when shapes disagree.

    Reference: Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Medical Image Analysis
    2008 (12:26-41), with an equilibrium for its greedy steps, and one step for both sides.

    >>> import torch
    >>> image = ops.gaussian(torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)), 1.0)
    >>> still = torch.eye(2, 3)
    >>> update = SymmetricUpdate(image, image, Variational(), shape=(16, 16), field=(8, 8), affines=(still, still))
    >>> bool(update(torch.zeros(1, 4, 8, 8)).abs().max() < 0.05)
    True
    """

    def __init__(
        self,
        fixed: Tensor,
        moving: Tensor,
        method: Variational,
        *,
        shape: Sequence[int],
        field: Sequence[int],
        affines: tuple[Tensor, Tensor],
        spacing: Sequence[float] | None = None,
        features: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        blank = fixed.new_empty(()).expand(*fixed.shape[:2], *shape)  # each side is compared with the other's image
        self.method, self.features = method, features
        self.similarity = fixed.new_zeros(fixed.shape[0])
        self.sides = tuple(
            VariationalUpdate(blank, image, method, field=field, spacing=spacing, affine=affine)
            for image, affine in zip((fixed, moving), affines, strict=True)
        )

    def step(self, halves: Sequence[Tensor]) -> Tensor:
        """What brings moving closer to fixed, `[N, d, *field]`, in voxels of the field, bounded."""
        fine = [side.on_image(half) for side, half in zip(self.sides, halves, strict=True)]
        seen = [side.sampled(u) for side, u in zip(self.sides, fine, strict=True)]
        self.similarity, *by_image = self.method.similarity.value_and_gradients(*seen)
        forces = [side.pulled_back(u, by) for side, u, by in zip(self.sides, fine, by_image, strict=True)]
        if self.features is not None:
            self._add_pull_of_features(forces, halves)
        return self.sides[0].smoothed_step(forces[1].sub_(forces[0]).mul_(0.5))

    def _add_pull_of_features(self, forces: Sequence[Tensor], halves: Sequence[Tensor]) -> None:
        """To either side `-d/du |F o a - M o b|^2 / 2`, weighted."""
        assert self.features is not None
        fixed, moving = (ops.warp(learned, half) for learned, half in zip(self.features, halves, strict=True))
        between = fixed.sub_(moving)
        for force, learned, half, sign in zip(forces, self.features, halves, (-1, 1), strict=True):
            pull = self.sides[0].per_edge(ops.warp_gradient(learned, half, between))
            force.add_(pull, alpha=sign * self.method.guidance)

    def __call__(self, state: Tensor) -> Tensor:
        """The next fields, `[N, 2 d, *field]`, in their voxels: that of fixed, then that of moving."""
        halves = [half.contiguous() for half in state.chunk(2, dim=1)]
        step = self.step(halves).div_(2)
        moved = torch.cat([ops.compose(halves[0], -step), ops.compose(halves[1], step)], dim=1)
        return self.sides[0].smoothed_field(moved)
