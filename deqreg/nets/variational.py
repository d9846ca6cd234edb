"""The classical update: a smoothed similarity gradient, composed, with a constant step, so that it can come to rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deqreg import ops
from deqreg.spatial import sample, scatter


@dataclass(frozen=True)
class Lncc:
    """Mean squared local correlation.

    Args:
        window: edge of the window in voxels of the level, odd.
        epsilon: variance below which a window counts as flat, in squared intensities of images scaled to [0, 1].
    """

    window: int = 5
    # A standard deviation of 1 % of the intensity range, about the noise of a good T1 or CT. Without it, windows at the
    # rim of a background hold almost no variance and pull hundreds of times harder than the rest.
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3, got {self.window}")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon must be positive, got {self.epsilon}")

    def value(self, fixed: Tensor, warped: Tensor, mask: Tensor | None) -> Tensor:
        """The similarity `[N]`."""
        return ops.lncc(fixed, warped, window=self.window, mask=mask, epsilon=self.epsilon, shared=self.epsilon)

    def value_and_gradient(self, fixed: Tensor, warped: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The similarity `[N]` and the gradient of its sum over voxels by the warped image, `[N, 1, *S]`."""
        noise = self.epsilon  # shared, so that equal images pull at nothing
        value, gradient = ops.lncc_gradient(fixed, warped, window=self.window, mask=mask, epsilon=noise, shared=noise)
        counted = fixed[0].numel() if mask is None else mask.flatten(1).sum(1).view(-1, *[1] * (fixed.ndim - 1))
        return value, gradient.mul_(counted)

    def value_and_gradients(self, fixed: Tensor, warped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The similarity `[N]` and the gradients of its sum over voxels by either image, `[N, 1, *S]` each."""
        noise = self.epsilon
        value, *gradients = ops.lncc_gradients(fixed, warped, window=self.window, epsilon=noise, shared=noise)
        by_fixed, by_warped = (gradient.mul_(fixed[0].numel()) for gradient in gradients)
        return value, by_fixed, by_warped


@dataclass(frozen=True)
class MeanSquares:
    """Minus the mean squared difference, for images of the same contrast.

    Args:
        weight: brings the force to the size of the local correlation's, so that steps mean the same.
    """

    weight: float = 20.0

    def __post_init__(self) -> None:
        """Check the number."""
        if self.weight <= 0:
            raise ValueError(f"weight must be positive, got {self.weight}")

    def value(self, fixed: Tensor, warped: Tensor, mask: Tensor | None) -> Tensor:
        """The similarity `[N]`."""
        return self.value_and_gradient(fixed, warped, mask)[0]

    def value_and_gradient(self, fixed: Tensor, warped: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The similarity `[N]` and the gradient of its weighted sum over voxels by the warped image, `[N, 1, *S]`."""
        difference = fixed - warped if mask is None else (fixed - warped) * mask
        counted = fixed[0].numel() if mask is None else mask.flatten(1).sum(1).clamp(min=1)
        return -difference.square().flatten(1).sum(1) / counted, difference.mul_(2 * self.weight)

    def value_and_gradients(self, fixed: Tensor, warped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The similarity `[N]` and the gradients of its weighted sum over voxels by either image, `[N, 1, *S]` each."""
        value, by_warped = self.value_and_gradient(fixed, warped, None)
        return value, -by_warped, by_warped


Similarity = Lncc | MeanSquares


@dataclass(frozen=True)
class Variational:
    """How the classical update moves. Lengths are in units of the field's finest voxel edge.

    Args:
        similarity: what pulls.
        step: `tau`, displacement for a unit force, a force being per finest voxel edge of the images.
        longest_step: displacement that no step exceeds.
        smooth_update: standard deviation of the Gaussian on each step: how local a motion may be.
        smooth_field: standard deviation of the Gaussian on the field after each step: how strongly it is regularised.
        guidance: weight of features' squared distance, where there are any, against the similarity.
        landmarks: weight of the landmarks' squared distance, where there are any, against the similarity.
    """

    similarity: Similarity = field(default_factory=Lncc)
    step: float = 1.0
    longest_step: float = 0.25
    smooth_update: float = 1.5
    smooth_field: float = 0.5
    # of unit vectors, with forces of images in [0, 1]: the best of 0, 1 and 2 between brains (docs/learned.md)
    guidance: float = 1.0
    # half of a lung's landmarks: from 1.7 mm to 0.9, the others' error as it was (docs/method.md)
    landmarks: float = 2.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("step", "longest_step"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("guidance", "landmarks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("smooth_update", "smooth_field"):
            if not 0 <= getattr(self, name) <= ops.MAX_SIGMA:
                raise ValueError(f"{name} must be in 0 ... {ops.MAX_SIGMA:.1f}, got {getattr(self, name)}")
        # a step of c voxels smoothed over s voxels changes by at most c exp(-1/2) / s from voxel to voxel; below one,
        # it cannot fold by itself
        if self.longest_step >= 1.6 * max(self.smooth_update, 0.5):
            raise ValueError(
                f"longest_step must be below 1.6 smooth_update, or steps fold; got {self.longest_step} "
                f"and {self.smooth_update}"
            )


class VariationalUpdate:
    """One step of the classical method on one pair at one level, `u -> f(u)`.

    `f(u) = G_field * compose(u, s)`, `s = c tau F / sqrt(c^2 + |tau F|^2)`, `F = G_update * dS/du`: the similarity's
    gradient by the displacement, smoothed, bounded by the longest step `c`, put before the field, and the result
    smoothed. No part of it depends on the iteration, so that its equilibrium balances similarity against smoothness,
    and the residual falls to it. Steps are composed, not added: each is a diffeomorphism, and so is their product.

    The field may have fewer voxels than the images, over the same extent: as smooth as it is, it loses nothing by that,
    and most of what a step costs becomes an eighth. The images see it interpolated, `P u`, and `dS/du = P^T dS/d(Pu)`,
    a mean over the image's voxels rather than a sum.

    Features `F` and `M` of the two images, where they are given, pull beside the similarity:
    `-w |F - M o u|^2 / 2` is added to it at the field's voxels, `w` being the guidance. Points `p` with a displacement
    `q` that is known, landmarks, pull by `-w |u(p) - q|^2 / 2` in the field's voxels.

    Args:
        fixed: `[N, 1, *S]`, scaled to about [0, 1].
        moving: `[N, 1, *S_moving]`, in the same contrast units.
        method: how the update moves.
        field: the field's spatial shape; that of fixed if not given.
        spacing: voxel edges of fixed, any unit; forces and smoothing are isotropic in it.
        affine: `[A | t]`, `[d, d + 1]`, fixed voxels to moving voxels, applied after the displacement: moving is
            interpolated once, in its own voxels. Not needed where both images lie on one grid.
        mask: `[N, 1, *S]`, where the similarity counts, or None.
        features: of fixed and of moving, `[N, C, *field]` each, or None.
        landmarks: points and their displacements, `[N, P, d]` each, in voxels of the field, or None.

    Raises:
        ValueError: when shapes disagree.

    Reference: Vercauteren et al., Diffeomorphic demons, NeuroImage 2009 (45:S61-S72), alg. 2, with the similarity of
    Avants et al., Medical Image Analysis 2008 (12:26-41) and a step that is constant instead of normalised.

    >>> import torch
    >>> image = ops.gaussian(torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)), 1.0)
    >>> update = VariationalUpdate(image, image, Variational())
    >>> bool(update(torch.zeros(1, 2, 16, 16)).abs().max() < 0.05)
    True
    """

    def __init__(
        self,
        fixed: Tensor,
        moving: Tensor,
        method: Variational,
        *,
        field: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        affine: Tensor | None = None,
        mask: Tensor | None = None,
        features: tuple[Tensor, Tensor] | None = None,
        landmarks: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        dims = fixed.ndim - 2
        if affine is None and moving.shape != fixed.shape:
            raise ValueError(f"moving must be {list(fixed.shape)} without an affine map, got {list(moving.shape)}")
        if affine is not None and list(affine.shape) != [dims, dims + 1]:
            raise ValueError(f"affine must be [{dims}, {dims + 1}], got {list(affine.shape)}")
        self.fixed, self.moving, self.method, self.mask = fixed, moving, method, mask
        self.shape = tuple(fixed.shape[2:] if field is None else field)
        if len(self.shape) != dims:
            raise ValueError(f"field must be {dims} sizes, got {list(self.shape)}")
        for learned in features or ():
            if learned.shape[2:] != self.shape:
                raise ValueError(f"features must be [N, C, *{list(self.shape)}], got {list(learned.shape)}")
        for given in landmarks or ():
            if given.ndim != 3 or given.shape[0] != fixed.shape[0] or given.shape[2] != dims:
                raise ValueError(f"landmarks must be [{fixed.shape[0]}, P, {dims}], got {list(given.shape)}")
        self.features, self.landmarks = features, landmarks
        self.similarity = fixed.new_zeros(fixed.shape[0])
        edges = torch.tensor([1.0] * dims if spacing is None else list(spacing), dtype=torch.float64)
        self._ratio = torch.tensor([n / m for n, m in zip(fixed.shape[2:], self.shape, strict=True)]).to(edges)
        coarse = edges * self._ratio
        relative = coarse / coarse.min()
        self._sigma_update = (method.smooth_update / relative).tolist()
        self._sigma_field = (method.smooth_field / relative).tolist()
        self._force_unit = self._per_axis(edges.min() / edges / self._ratio.prod())
        self._step_unit = self._per_axis(1 / relative)
        self._to_image = self._per_axis(self._ratio)
        self._affine = None if affine is None else affine.to(fixed).expand(fixed.shape[0], -1, -1).contiguous()
        # a force on moving voxels is one on fixed voxels by A^T; most images that lie side by side need no turn
        self._turn: Tensor | None = None
        if affine is not None and not torch.equal(affine[:, :dims].double(), torch.eye(dims, dtype=torch.float64)):
            self._turn = affine[:, :dims].T.to(fixed)

    def _per_axis(self, factors: Tensor) -> Tensor | None:
        """Factors `[d]` ready to scale a field; None where there is nothing to scale."""
        if bool((factors == 1).all()):
            return None
        return factors.to(self.fixed).view(1, -1, *[1] * len(factors))

    def on_image(self, displacement: Tensor) -> Tensor:
        """The displacement at the voxels of the fixed image, in those."""
        if self.shape == self.fixed.shape[2:]:
            return displacement
        scaled = displacement if self._to_image is None else displacement * self._to_image
        return ops.resize(scaled, self.fixed.shape[2:])

    def sampled(self, fine: Tensor) -> Tensor:
        """The moving image under a displacement at the voxels of the fixed image, `[N, 1, *S]`."""
        return ops.warp(self.moving, fine, affine=self._affine)

    def force(self, displacement: Tensor) -> Tensor:
        """The smoothed gradient of the similarity by the displacement, `[N, d, *field]`, per finest edge of fixed."""
        fine = self.on_image(displacement)
        self.similarity, by_image = self.method.similarity.value_and_gradient(self.fixed, self.sampled(fine), self.mask)
        force = self.pulled_back(fine, by_image)
        if self.features is not None:
            force.add_(self._pull_of_features(displacement), alpha=self.method.guidance)
        if self.landmarks is not None:
            force.add_(self._pull_of_landmarks(displacement), alpha=self.method.landmarks)
        return ops.gaussian(force, self._sigma_update)

    def pulled_back(self, fine: Tensor, by_image: Tensor) -> Tensor:
        """A gradient by the warped image as one by the displacement, `[N, d, *field]`, per finest edge of fixed.

        Args:
            fine: the displacement at the voxels of the fixed image.
            by_image: `[N, 1, *S]`.
        """
        force = ops.warp_gradient(self.moving, fine, by_image, affine=self._affine)
        if self.shape != self.fixed.shape[2:]:
            force = ops.resize_adjoint(force, self.shape)
        if self._turn is not None:
            force = torch.einsum("ab,nb...->na...", self._turn, force)
        return force if self._force_unit is None else force.mul_(self._force_unit)

    def per_edge(self, gradient: Tensor) -> Tensor:
        """A gradient by the displacement in voxels of the field as one per finest edge of the field, in its memory."""
        return gradient if self._step_unit is None else gradient.mul_(self._step_unit)

    def _pull_of_features(self, displacement: Tensor) -> Tensor:
        """`-d/du |F - M o u|^2 / 2`, per finest edge of the field."""
        assert self.features is not None
        fixed, moving = self.features
        warped = ops.warp(moving, displacement)
        return self.per_edge(ops.warp_gradient(moving, displacement, torch.sub(fixed, warped, out=warped)))

    def _pull_of_landmarks(self, displacement: Tensor) -> Tensor:
        """`-d/du |u(p) - q|^2 / 2`, per finest edge of the field."""
        assert self.landmarks is not None
        points, wanted = self.landmarks
        pull = scatter(wanted.to(displacement) - sample(displacement, points), points, self.shape)
        return pull if self._step_unit is None else pull.div_(self._step_unit)

    def step(self, displacement: Tensor) -> Tensor:
        """The step the force asks for, `[N, d, *field]`, in voxels of the field, bounded."""
        return self.bounded(self.force(displacement))

    def bounded(self, force: Tensor) -> Tensor:
        """The step that a smoothed force asks for, in its memory."""
        tau = self.method.step
        # vector_norm along axis 1 takes torch thirty times as long on a CPU
        squared = force[:, :1].square()
        for component in force[:, 1:].split(1, dim=1):
            squared.addcmul_(component, component)
        force.mul_(squared.mul_((tau / self.method.longest_step) ** 2).add_(1).rsqrt_().mul_(tau))
        return force if self._step_unit is None else force.mul_(self._step_unit)

    def smoothed_step(self, force: Tensor) -> Tensor:
        """The step that a force as it comes asks for."""
        return self.bounded(ops.gaussian(force, self._sigma_update))

    def smoothed_field(self, displacement: Tensor) -> Tensor:
        """A field, or several beside each other, `[N, k d, *field]`, under the regularisation."""
        return ops.gaussian(displacement, self._sigma_field)

    def __call__(self, displacement: Tensor) -> Tensor:
        """The next field, `[N, d, *field]`, in its voxels."""
        return self.smoothed_field(ops.compose(displacement, self.step(displacement)))
