"""The residual that decides when a sample is done."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Keeps 0 / 0 at a fixed point of zero; far below what float32 states resolve beside anything of size one.
EPSILON = 1e-8

NORMS = ("relative", "absolute", "rms")


def denominator(norm: str, elements: int) -> tuple[float, float]:
    """Numbers `(a, b)` that make the residual `||f(z) - z|| / (a ||f(z)|| + b)`, norms Euclidean over one sample.

    `"relative"` is `||f(z) - z|| / (||f(z)|| + 1e-8)`; `"absolute"` is `||f(z) - z||`; `"rms"` is the root mean square
    over the sample's elements, in the state's own units, whatever the size of the grid.
    """
    return {"relative": (1.0, EPSILON), "absolute": (0.0, 1.0), "rms": (0.0, math.sqrt(max(elements, 1)))}[norm]


def residual(z: tuple[Tensor, ...], value: tuple[Tensor, ...], norm: str) -> Tensor:
    """The residual of every sample, `[N]`, float64, where `value = f(z)`; see `denominator`."""
    difference = lengths(tuple(b - a for a, b in zip(z, value, strict=True)))
    relative, absolute = denominator(norm, sum(math.prod(part.shape[1:]) for part in z))
    return difference / (relative * lengths(value) + absolute)


def lengths(parts: tuple[Tensor, ...]) -> Tensor:
    """The Euclidean norm of every sample over all parts, `[N]`, float64."""
    flat = [part.reshape(len(part), math.prod(part.shape[1:])) for part in parts]
    return torch.stack([part.double().square().sum(1) for part in flat]).sum(0).sqrt()
