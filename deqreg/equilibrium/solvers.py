"""Solvers: how an equilibrium is found. They know nothing of images, and nothing of how it is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deqreg.equilibrium.solution import Solution
from deqreg.equilibrium.state import AndersonState
from deqreg.equilibrium.stopping import NORMS
from deqreg.ops.checks import require

Update = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
Callback = Callable[[int, float], None]

MAX_MEMORY = 16  # slots of the kernels' ring


class Solver(Protocol):
    """Anything that finds `z = f(z)` from `z0`, tuples of tensors whose axis 0 is the sample."""

    def solve(self, f: Update, z0: tuple[Tensor, ...], callback: Callback | None = None) -> Solution:
        """The equilibrium, without a graph."""
        ...


@dataclass(frozen=True, kw_only=True)
class Picard:
    """Repeated application: `z <- z + damping (f(z) - z)`.

    Args:
        tol: a sample has converged, and is frozen, when its residual is at most this.
        max_steps: evaluations of `f` allowed.
        damping: in (0, 1].
        norm: of the residual: `"relative"`, `||f(z) - z|| / ||f(z)||`; `"absolute"`; or `"rms"`, in the state's units.
        divergence: a sample has diverged when `||f(z) - z||` is this many times its smallest so far.
        patience: a sample has stagnated after this many steps in which `||f(z) - z||` did not fall; None for never.
        check_every: steps between the host's looks at the device; None for every step on a CPU, where looking costs
            nothing, and every fifth elsewhere. Results do not depend on it.

    Raises:
        ValueError: when a number is out of range.

    >>> Picard(damping=0.5, max_steps=200).tol
    0.001
    """

    tol: float = 1e-3
    max_steps: int = 100
    damping: float = 1.0
    norm: str = "relative"
    divergence: float = 1e3
    patience: int | None = 20
    check_every: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        self._as_anderson()

    def _as_anderson(self) -> Anderson:
        """Anderson with a memory of one, which has nothing to mix."""
        return Anderson(memory=1, **vars(self))

    def solve(self, f: Update, z0: tuple[Tensor, ...], callback: Callback | None = None) -> Solution:
        """The equilibrium, without a graph."""
        return self._as_anderson().solve(f, z0, callback)


@dataclass(frozen=True, kw_only=True)
class Anderson:
    """Anderson acceleration, type II: mixes the last iterates so that their mixed residual is smallest.

    `z <- sum_j a_j (z_j + damping g_j)`, `g_j = f(z_j) - z_j`, with the weights that minimise
    `||sum_j a_j g_j||^2 + regularisation sum_j ||g_j||^2 a_j^2` under `sum_j a_j = 1`, found from the Gram matrix of
    the residuals in float64.

    Safeguard: where `||f(z) - z||` of a mixed iterate exceeds `growth` times the smallest since it last did, that
    sample forgets its history and takes a Picard step; where it is not finite, the sample returns to its best iterate
    and takes a Picard step half as long, and half of that the next time.

    Args:
        memory: past iterates mixed, 1 ... 16. The solver's memory is `2 memory + 1` states.
        tol: a sample has converged, and is frozen, when its residual is at most this.
        max_steps: evaluations of `f` allowed.
        damping: in (0, 1].
        regularisation: relative to the residuals' own sizes, so that it means the same on any grid and at any step.
        norm: of the residual: `"relative"`, `||f(z) - z|| / ||f(z)||`; `"absolute"`; or `"rms"`, in the state's units.
        growth: see the safeguard.
        divergence: a sample has diverged when `||f(z) - z||` is this many times its smallest so far.
        patience: a sample has stagnated after this many steps in which `||f(z) - z||` did not fall; None for never.
        check_every: steps between the host's looks at the device; None for every step on a CPU, where looking costs
            nothing, and every fifth elsewhere. Results do not depend on it.

    Raises:
        ValueError: when a number is out of range.

    Reference: Walker & Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49 (2011), algorithm
    AA, in the normal-equation form of Anderson, J. ACM 12 (1965), eq. 4.

    >>> Anderson(memory=3).max_steps
    40
    """

    memory: int = 5
    tol: float = 1e-3
    max_steps: int = 40
    damping: float = 1.0
    regularisation: float = 1e-6
    norm: str = "relative"
    growth: float = 2.0
    divergence: float = 1e3
    patience: int | None = 20
    check_every: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        memory, max_steps, every = self.memory, self.max_steps, self.check_every
        known_memory = isinstance(memory, int) and 1 <= memory <= MAX_MEMORY
        require(known_memory, f"memory must be in 1 ... {MAX_MEMORY}", memory)
        require(self.tol >= 0, "tol must be at least 0", self.tol)
        require(isinstance(max_steps, int) and max_steps >= 1, "max_steps must be at least 1", max_steps)
        require(0 < self.damping <= 1, "damping must be in (0, 1]", self.damping)
        require(0 <= self.regularisation <= 1, "regularisation must be in [0, 1]", self.regularisation)
        require(self.norm in NORMS, f"norm must be one of {', '.join(map(repr, NORMS))}", self.norm)
        require(self.growth > 1, "growth must be above 1", self.growth)
        require(self.divergence > 1, "divergence must be above 1", self.divergence)
        require(self.patience is None or self.patience >= 1, "patience must be at least 1 or None", self.patience)
        require(every is None or every >= 1, "check_every must be at least 1 or None", every)

    @torch.no_grad()
    def solve(self, f: Update, z0: tuple[Tensor, ...], callback: Callback | None = None) -> Solution:
        """The equilibrium, without a graph."""
        state = AndersonState(z0, self)
        every = self.check_every or (1 if z0[0].device.type == "cpu" else 5)
        for step in range(1, self.max_steps + 1):
            state.advance(f(state.z))
            if step % every == 0 or step == self.max_steps:
                if callback is not None:
                    callback(step, state.residual())
                if not state.running():
                    break
        return state.finish()
