"""DEQReg: a learned registration as the equilibrium of a recurrent update on learned features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from deqreg import ops
from deqreg.equilibrium import Adjoint, Anderson, Phantom, Solution, Solver, fixed_point
from deqreg.nets.encoder import POOL, Encoder, crop, pad_to_multiple
from deqreg.nets.recurrent import RecurrentUpdate, State
from deqreg.spatial import resize_displacement


class DEQReg(nn.Module):
    """Registers pairs of images: `net(fixed, moving)` returns the displacement and how its equilibrium was found.

    An encoder turns both images into features; on each level, coarse to fine, one update, the same on all of them, is
    iterated to its equilibrium, which starts the next. Gradients are those of the last level.

    Args:
        dims: 2 or 3.
        channels: learned features a voxel.
        widths: channels inside the encoder, fine to coarse.
        encoder_stride: voxel edge of the features, in voxels of the images, 1 or 2; the strides are multiples of it.
        labels: that the features tell apart, or None; see `Encoder`.
        strides: voxel edges of the levels, in voxels of the images, coarse to fine, each a multiple of the next.
        hidden: channels of the update's memory.
        kernel: edge of the update's convolution in voxels, odd.
        bridge: whether the update contains the classical step; see `RecurrentUpdate`.
        contrast: weight of the image itself, its intensities locally normalised, beside the learned features.
        gain, longest_step, smooth_update, smooth_field: of the classical step; see `RecurrentUpdate`.
        solver: finds the equilibria; one for all levels, or one a level.
        adjoint: differentiates the last.

    Raises:
        ValueError: when an argument is out of range.

    Reference: Zhang, Zhao & Tao, Bridging classical and learning-based iterative registration through deep equilibrium
    models, MICCAI 2025 (doi 10.1007/978-3-032-04947-6_9).

    >>> net = DEQReg(dims=2, channels=4, widths=(8, 8))
    >>> displacement, solution = net(torch.rand(1, 1, 25, 20), torch.rand(1, 1, 25, 20))
    >>> list(displacement.shape), solution.residuals.shape[1]
    ([1, 2, 25, 20], 1)
    """

    def __init__(
        self,
        *,
        dims: int = 3,
        channels: int = 16,
        widths: Sequence[int] = (32, 64, 96, 128),
        encoder_stride: int = 1,
        labels: int | None = None,
        strides: Sequence[int] = (2, 1),
        hidden: int = 8,
        kernel: int = 1,
        bridge: bool = True,
        contrast: float = 0.6,
        gain: float = 10.0,
        longest_step: float = 0.25,
        smooth_update: float = 1.5,
        smooth_field: float = 0.5,
        solver: Solver | Sequence[Solver] = Anderson(memory=4, tol=0.005, max_steps=40, norm="rms"),  # noqa: B008  frozen
        adjoint: Adjoint = Phantom(steps=3),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        strides = list(strides)
        nested = all(a > b >= 1 and a % b == 0 for a, b in pairwise(strides))
        if not strides or strides[-1] < 1 or not nested:
            raise ValueError(f"strides must fall, each a multiple of the next, got {strides}")
        if strides[-1] % encoder_stride:
            raise ValueError(f"strides must be multiples of the encoder's, {encoder_stride}, got {strides}")
        self._arguments: dict[str, Any] = {
            "dims": dims, "channels": channels, "widths": list(widths), "encoder_stride": encoder_stride,
            "labels": labels, "strides": strides, "hidden": hidden, "kernel": kernel, "bridge": bridge,
            "contrast": contrast, "gain": gain, "longest_step": longest_step, "smooth_update": smooth_update,
            "smooth_field": smooth_field,
        }  # fmt: skip
        solvers = list(solver) if isinstance(solver, Sequence) else [solver] * len(strides)
        if len(solvers) != len(strides):
            raise ValueError(f"solver must be one, or one for each of {len(strides)} levels, got {len(solvers)}")
        self.strides, self.contrast, self.solvers, self.adjoint = strides, contrast, solvers, adjoint
        self.log_balance = nn.Parameter(torch.zeros(()))
        self.encoder = Encoder(dims=dims, channels=channels, widths=widths, stride=encoder_stride, labels=labels)
        self.update = RecurrentUpdate(
            dims=dims, hidden=hidden, kernel=kernel, bridge=bridge, gain=gain, longest_step=longest_step,
            smooth_update=smooth_update, smooth_field=smooth_field,
        )  # fmt: skip

    @property
    def solver(self) -> Solver:
        """The last level's."""
        return self.solvers[-1]

    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this network, but for the solver and the adjoint; plain values."""
        return dict(self._arguments)

    def coarsest(self) -> DEQReg:
        """The network with its first level alone, which shares this one's weights."""
        coarse = DEQReg(**{**self.config(), "strides": self.strides[:1]}, solver=self.solvers[0], adjoint=self.adjoint)
        coarse.encoder, coarse.update, coarse.log_balance = self.encoder, self.update, self.log_balance
        return coarse.train(self.training)

    def forward(
        self, fixed: Tensor, moving: Tensor, start: Tensor | None = None, features: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Solution]:
        """Register.

        Args:
            fixed: `[N, 1, *S]`, scaled to [0, 1].
            moving: as fixed.
            start: a displacement to start from, `[N, d, *S]`, in voxels; zero where it is not given.
            features: what the encoder made of both, where that is at hand, or its last voxels repeated for the coarsest
                level's sake.

        Returns:
            The displacement `[N, d, *S]`, in voxels, and the last level's solution.

        Raises:
            ValueError: when a shape breaks this contract.
        """
        f, z0 = self.prepare(fixed, moving, start, features)
        solution = fixed_point(f, z0, solver=self.solver, adjoint=self.adjoint)
        u, hidden = solution.value
        return self.displacement((u, hidden), fixed.shape[2:]), solution

    def prepare(
        self, fixed: Tensor, moving: Tensor, start: Tensor | None = None, features: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Callable[[State], State], State]:
        """The last level's update of this pair, with its gradients to the weights, and the state it starts from.

        The coarser levels are solved here, without gradients.
        """
        if moving.shape != fixed.shape:
            raise ValueError(f"moving must be as fixed, {list(fixed.shape)}, got {list(moving.shape)}")
        if features is None:
            features = self.encoder(fixed), self.encoder(moving)
        update, state = self._level(features, (fixed, moving), self.strides[0])
        if start is not None:
            state = self._on_level(start, state[0].shape[2:]), state[1]
        for solver, stride in zip(self.solvers, self.strides[1:], strict=False):
            with torch.no_grad():
                value = fixed_point(update, state, solver=solver).value
            assert isinstance(value, tuple)
            update, finer = self._level(features, (fixed, moving), stride)
            shape = finer[0].shape[2:]
            state = resize_displacement(value[0], shape), _enlarge(value[1], shape)
        return update, state

    def displacement(self, z: State, shape: Sequence[int]) -> Tensor:
        """The displacement `[N, d, *shape]` on the images' grid, in its voxels, of a state on the last level's."""
        stride = self.strides[-1]
        return crop(resize_displacement(z[0], [n * stride for n in z[0].shape[2:]]), shape)

    def _level(
        self, features: tuple[Tensor, Tensor], images: tuple[Tensor, Tensor], stride: int
    ) -> tuple[Callable[[State], State], State]:
        fixed, moving = (self._features(*both, stride) for both in zip(features, images, strict=True))
        # |e^b (L - L')|^2 + |I - I'|^2 = e^2b (|L - L'|^2 + |e^-b (I - I')|^2): the learned features, which take most
        # of the memory, stay as they are
        return self.update.on(fixed, moving, (2 * self.log_balance).exp()), self.update.start(fixed[0])

    def _features(self, learned: Tensor, image: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """What the update compares on one level: the learned features and the locally normalised image."""
        pool, fine = POOL[image.ndim - 2], self.encoder.stride
        learned = learned.to(image.dtype)  # autocast leaves them in half precision, and the state is of their type
        if fine > 1:
            image = pool(pad_to_multiple(image, fine), fine)
        # every level covers the same voxels: those of the images, padded for the coarsest
        learned, image = (pad_to_multiple(part, self.strides[0] // fine) for part in (learned, image))
        if stride > fine:
            learned, image = (pool(part, stride // fine) for part in (learned, image))
        return learned, self.contrast * (-self.log_balance).exp() * locally_normalised(image)

    def _on_level(self, displacement: Tensor, shape: Sequence[int]) -> Tensor:
        padded = pad_to_multiple(displacement, self.strides[0])
        return resize_displacement(padded, shape)


def locally_normalised(image: Tensor, sigma: float = 2.0, noise: float = 1e-4) -> Tensor:
    """An image less its local mean, over its local standard deviation.

    `(I - G I) / sqrt(G (I - G I)^2 + noise)`: the squared difference of two such images is 2 less twice their local
    correlation.

    Args:
        image: `[N, 1, *S]`.
        sigma: of the Gaussian window `G`, in voxels.
        noise: variance below which the image counts as flat.

    >>> image = torch.rand(1, 1, 16, 16)
    >>> torch.allclose(locally_normalised(image), locally_normalised(5 * image + 1, noise=25e-4), atol=1e-4)
    True
    """
    centred = image - ops.gaussian(image, sigma)
    return centred * torch.rsqrt(ops.gaussian(centred.square(), sigma) + noise)


def _enlarge(hidden: Tensor, shape: Sequence[int]) -> Tensor:
    """Every voxel repeated to fill a finer grid."""
    for axis, size in enumerate(shape, 2):
        hidden = hidden.repeat_interleave(size // hidden.shape[axis], dim=axis)
    return hidden
