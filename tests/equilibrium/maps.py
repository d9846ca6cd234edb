"""Maps with a known fixed point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """`f(z) = z A^T + b` on `[N, n]`, float64, with the eigenvalues of `A` spread evenly over an interval."""

    matrix: Tensor
    shift: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.matrix.T + self.shift

    @property
    def equilibrium(self) -> Tensor:
        return torch.linalg.solve(torch.eye(len(self.matrix)).to(self.matrix) - self.matrix, self.shift.T).T


def linear(low: float, high: float, *, size: int = 40, batch: int = 1, seed: int = 0) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, size, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(noise)[0]
    matrix = (basis * torch.linspace(low, high, size, dtype=torch.float64)) @ basis.T
    return Linear(matrix, torch.randn(batch, size, dtype=torch.float64, generator=generator))
