"""What a solve found, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

State = Tensor | tuple[Tensor, ...]


class Status(Enum):
    """How a solve ended, from best to worst. `sentence` says it to a person."""

    CONVERGED = "converged"
    FIXED_STEPS = "fixed_steps"
    MAX_STEPS = "max_steps"
    STAGNATED = "stagnated"
    DIVERGED = "diverged"
    NONFINITE = "nonfinite"

    @property
    def sentence(self) -> str:
        """What happened, and what to do about it."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CONVERGED: "The residual fell below the tolerance.",
    Status.FIXED_STEPS: "It took the number of steps it was told to; nothing was asked of the residual.",
    Status.MAX_STEPS: "The residual was still above the tolerance at the last step allowed: raise max_steps or tol.",
    Status.STAGNATED: "The residual stopped falling above the tolerance: raise tol, or use float64 for one so small.",
    Status.DIVERGED: "The residual kept growing: lower the damping or the update's step. The best iterate is returned.",
    Status.NONFINITE: "The update returned infinities or NaN: check its input. The best finite iterate is returned.",
}


@dataclass(frozen=True, eq=False)
class Trace:
    """How a solve went, sample by sample.

    Attributes:
        residuals: `[K, N]`, float64, on the CPU: the residual of every sample at every step in the solver's norm. A
            sample that stopped early repeats its last.
        steps: `[N]`, int64, on the CPU: evaluations of the update until the sample stopped.
        statuses: how each of the N samples ended.
    """

    residuals: Tensor
    steps: Tensor
    statuses: tuple[Status, ...]

    @property
    def status(self) -> Status:
        """The worst status in the batch; an empty batch has converged."""
        order = list(Status)
        return max(self.statuses, key=order.index, default=Status.CONVERGED)

    @property
    def converged(self) -> bool:
        """Whether every sample converged."""
        return self.status is Status.CONVERGED

    @property
    def message(self) -> str:
        """The worst sample's status as a sentence, with the batch's largest steps and residual."""
        if not self.statuses:
            return "The batch is empty."
        steps, residual = int(self.steps.max()), float(self.residuals[-1].max())
        return f"{self.status.sentence} ({steps} {'step' if steps == 1 else 'steps'}, residual {residual:.1e})"


@dataclass(frozen=True, eq=False)
class Solution(Trace):
    """An equilibrium, or the best approximation found.

    Attributes:
        value: `z*`, shaped as the initial state: the update's value at the iterate whose residual passed the test, else
            at the one with the smallest `||f(z) - z||`.
        adjoint: one `Trace` of the adjoint's linear solve for every backward pass so far, where the adjoint solves.
    """

    value: State
    adjoint: list[Trace] = field(default_factory=list)
