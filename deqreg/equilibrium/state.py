"""The state of one iteration, allocated once: its memory and its device's work do not depend on the steps taken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deqreg.equilibrium.solution import Solution, Status
from deqreg.equilibrium.stopping import denominator
from deqreg.ops.anderson import (
    AndersonCounter,
    AndersonLevel,
    AndersonStatus,
    anderson_partials,
)

if TYPE_CHECKING:
    from deqreg.equilibrium.solvers import Anderson

_STATUSES = {
    AndersonStatus.RUNNING: Status.MAX_STEPS,
    AndersonStatus.CONVERGED: Status.CONVERGED,
    AndersonStatus.STAGNATED: Status.STAGNATED,
    AndersonStatus.DIVERGED: Status.DIVERGED,
    AndersonStatus.NONFINITE: Status.NONFINITE,
}


class AndersonState:
    """Current iterate, ring of past ones and per-sample bookkeeping, all on the state's device.

    Of a state of E elements it holds `(2 memory + 1) E`, two slots at least and no more than there may be steps: one
    slot keeps the best iterate for as long as it is the best, so that it needs no memory of its own.
    """

    def __init__(self, z0: tuple[Tensor, ...], solver: Anderson) -> None:
        batch, device = z0[0].shape[0], z0[0].device
        self.solver, self.memory = solver, min(solver.memory, solver.max_steps)
        slots = max(self.memory, 2)
        self.z = tuple(part.detach().clone(memory_format=torch.contiguous_format) for part in z0)
        self.values = [torch.empty((slots, *part.shape), dtype=part.dtype, device=device) for part in z0]
        self.residuals = [torch.empty_like(values) for values in self.values]
        elements = [math.prod(part.shape[1:]) for part in z0]
        self.norm = denominator(solver.norm, sum(elements))
        counts = [anderson_partials(count) for count in elements]
        self.offsets = [sum(counts[:i]) for i in range(len(counts))]
        wide = {"dtype": torch.float64, "device": device}
        self.partials = torch.empty(batch, sum(counts), slots + 1, **wide)
        self.gram = torch.zeros(batch, slots, slots, **wide)
        self.levels = torch.zeros(batch, len(AndersonLevel), **wide)
        self.weights = torch.zeros(batch, slots, **wide)
        self.history = torch.zeros(solver.max_steps, batch, **wide)
        self.counters = torch.zeros(batch, len(AndersonCounter), dtype=torch.int64, device=device)
        self.counters[:, AndersonCounter.BEST] = -1

    def advance(self, value: tuple[Tensor, ...]) -> None:
        """One step from `value = f(z)`, of the state's shapes and dtypes. Nothing waits for the device."""
        # the operators themselves: what `deqreg.ops` checks before them is this object's own, and the checks took two
        # thirds of the time of a small step
        step, solver = torch.ops.deqreg, self.solver
        for z, f, values, residuals, offset in zip(
            self.z, value, self.values, self.residuals, self.offsets, strict=True
        ):
            step.anderson_update(z, f, values, residuals, self.partials, self.counters, offset)
        step.anderson_solve(
            self.partials,
            self.gram,
            self.counters,
            self.levels,
            self.history,
            self.weights,
            self.memory,
            solver.damping,
            solver.regularisation,
            solver.tol,
            solver.growth,
            solver.divergence,
            solver.max_steps if solver.patience is None else solver.patience,
            *self.norm,
        )
        for z, values, residuals in zip(self.z, self.values, self.residuals, strict=True):
            step.anderson_mix(values, residuals, self.weights, self.levels, self.counters, z)

    def running(self) -> bool:
        """Whether any sample still runs. Waits for the device."""
        return bool((self.counters[:, AndersonCounter.STATUS] == AndersonStatus.RUNNING).any())

    def residual(self) -> float:
        """The largest of the samples' latest residuals. Waits for the device."""
        last = (self.counters[:, AndersonCounter.STEPS] - 1)[None]
        return float(self.history.gather(0, last).max()) if last.numel() else 0.0

    def finish(self) -> Solution:
        """The best iterate of every sample and how it was come by. The state is spent: its memory holds the result."""
        counters = self.counters.cpu()
        for n, slot in enumerate(counters[:, AndersonCounter.BEST].tolist()):
            for z, values in zip(self.z, self.values, strict=True):
                if slot >= 0:
                    z[n] = values[slot, n]
        steps = counters[:, AndersonCounter.STEPS].clone()
        taken = int(steps.max()) if steps.numel() else 0
        rows = torch.minimum(torch.arange(taken)[:, None], steps[None] - 1)
        residuals = self.history[:taken].cpu().gather(0, rows)
        statuses = tuple(_STATUSES[AndersonStatus(code)] for code in counters[:, AndersonCounter.STATUS].tolist())
        return Solution(residuals, steps, statuses, self.z)
