"""Random changes of images that a registration must not mind, and random motions that it must find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deqreg import ops

_MODES = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training pair at random. Nothing does by default.

    Args:
        flip: array axes that are mirrored, both images at once, every second time. Only where the mirrored body could
            be one: left and right of a brain, never of a chest.
        deform: probability with which each image of a pair is deformed.
        synthetic: probability with which the pair is replaced by its moving image and the same deformed, so that the
            true displacement is known.
        amplitude: of the deformations: root mean square of the velocity they flow along, in millimetres, at most; each
            draws its own below it.
        smoothness: standard deviation of the Gaussian that the velocities are smoothed by, millimetres.
        gamma: standard deviation of the logarithm of an exponent that the network's input is raised to.
        contrast: the network's input is scaled about 1/2 by up to this share, up or down.
        noise: standard deviation of Gaussian noise, added to the network's input, at most.

    Raises:
        ValueError: when a number is out of range.

    >>> Augmentation(synthetic=0.5).flip
    ()
    """

    flip: tuple[int, ...] = ()
    deform: float = 0.0
    synthetic: float = 0.0
    amplitude: float = 4.0
    smoothness: float = 12.0
    gamma: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not set(self.flip) <= {0, 1, 2}:
            raise ValueError(f"flip must name array axes 0, 1 or 2, got {list(self.flip)}")
        for name in ("deform", "synthetic", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0 ... 1, got {getattr(self, name)}")
        for name in ("amplitude", "gamma", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.smoothness <= 0:
            raise ValueError(f"smoothness must be positive, got {self.smoothness}")

    def velocity(self, shape: Sequence[int], spacing: Sequence[float], generator: torch.Generator) -> Tensor:
        """A random smooth stationary velocity, `[1, d, *S]`, voxels, on the CPU; `exponential` makes a motion of it."""
        # drawn on a grid of half the smoothing's length, where the Gaussian is two voxels wide and cheap
        coarse = [max(4, math.ceil(2 * n * h / self.smoothness)) for n, h in zip(shape, spacing, strict=True)]
        coarse = [min(c, n) for c, n in zip(coarse, shape, strict=True)]
        noise = torch.randn(1, len(shape), *coarse, generator=generator)
        sigma = [self.smoothness * c / (n * h) for c, n, h in zip(coarse, shape, spacing, strict=True)]
        smooth = ops.gaussian(noise, [min(s, ops.MAX_SIGMA) for s in sigma])
        size = self.amplitude * _uniform(generator)
        smooth *= size / smooth.square().sum(1).mean().sqrt().clamp(min=1e-12)
        fine = functional.interpolate(smooth, size=tuple(shape), mode=_MODES[len(shape)], align_corners=False)
        return fine / torch.tensor(list(spacing)).view(1, -1, *[1] * len(shape))

    def intensities(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """An image in [0, 1] with another gamma, contrast and noise, in [0, 1]."""
        exponent = math.exp(self.gamma * float(torch.randn((), generator=generator)))
        scale = 1 + self.contrast * (2 * _uniform(generator) - 1)
        level = self.noise * _uniform(generator)
        if self.gamma > 0:
            image = image.pow(exponent)
        if self.contrast > 0:
            image = (image - 0.5) * scale + 0.5
        if self.noise > 0:
            image = image + level * torch.randn(image.shape, generator=generator).to(image.device)
        return image.clamp(0, 1)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
