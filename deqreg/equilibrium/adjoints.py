"""Adjoints: how an equilibrium is differentiated. They know nothing of images, and nothing of how it was found."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from deqreg.equilibrium.solution import Solution, Status, Trace
from deqreg.equilibrium.solvers import Anderson, Callback, Solver, Update
from deqreg.equilibrium.stopping import NORMS, lengths, residual
from deqreg.ops.autograd import check_not_recorded
from deqreg.ops.checks import check_tangent

Solve = Callable[[Update, tuple[Tensor, ...]], Solution]
Pull = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


class AdjointWarning(RuntimeWarning):
    """The adjoint's linear solve did not converge: the gradient is approximate."""


class Adjoint(Protocol):
    """Anything that turns a solve into a differentiable one."""

    def differentiate(
        self, f: Update, z0: tuple[Tensor, ...], solve: Solve, callback: Callback | None = None
    ) -> Solution:
        """`solve(f, z0)`, whose value carries gradients to all that `f` closes over."""
        ...


class _Probe:
    """An update that notices, at its first evaluation, whether anything it closes over wants a gradient.

    The graph of that one evaluation is dropped at once; where nothing wants a gradient there is none. A forward-mode
    derivative, which a solve would lose, raises.
    """

    def __init__(self, f: Update) -> None:
        self.f = f
        self.differentiable = False
        self.pending, self.wanted = True, torch.is_grad_enabled()

    def __call__(self, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.pending:
            return self.f(z)
        self.pending = False
        with torch.set_grad_enabled(self.wanted):
            value = self.f(z)
        for part in value:
            check_tangent("f(z)", part)
        self.differentiable = any(part.requires_grad for part in value)
        return tuple(part.detach() for part in value)


class _Attach(torch.autograd.Function):
    """Gives `value`, computed without a graph, the gradient of `attached`, through `pull`.

    The value is thus the same to the last bit whether a gradient is wanted or not.
    """

    @staticmethod
    def forward(ctx: Any, value: tuple[Tensor, ...], pull: Pull, *attached: Tensor) -> tuple[Tensor, ...]:
        ctx.pull = pull
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        check_not_recorded("an equilibrium")  # the graph would hold the state constant
        return None, None, *ctx.pull(grad_outputs)


@dataclass(frozen=True)
class Implicit:
    """The implicit function theorem: one evaluation of `f` is kept, however many steps the solver took.

    A cotangent `g` of `z* = f(z*)` becomes `w = g + (df/dz)^T w`, solved as a fixed point of its own, and `w` goes back
    through that one evaluation. Exact at an equilibrium; second derivatives, and so `create_graph=True`, raise.

    Args:
        solver: of the linear equation; its tolerance is the relative error it leaves in the gradient's equation. Where
            it fails, the best approximation is used, an `AdjointWarning` is issued, and `Solution.adjoint` says how far
            it came.

    Reference: Bai, Kolter & Koltun, Deep equilibrium models, NeurIPS 2019, theorem 1.

    >>> Implicit(solver=Anderson(tol=1e-6, max_steps=100)).solver.tol
    1e-06
    """

    solver: Solver = Anderson(tol=1e-3, max_steps=40)  # noqa: RUF009  frozen

    def __post_init__(self) -> None:
        """Check the solver."""
        if not callable(getattr(self.solver, "solve", None)):
            raise ValueError(f"solver must be a solver such as Anderson(), got {self.solver!r}")

    def differentiate(
        self, f: Update, z0: tuple[Tensor, ...], solve: Solve, callback: Callback | None = None
    ) -> Solution:
        """`solve(f, z0)`, whose value carries gradients to all that `f` closes over."""
        probe = _Probe(f)
        solution = solve(probe, z0)
        if not probe.differentiable:
            return solution
        assert isinstance(solution.value, tuple)
        leaves = tuple(part.detach().requires_grad_() for part in solution.value)
        for leaf in leaves:  # w also runs on into the leaves, where nobody wants it
            leaf.register_post_accumulate_grad_hook(_drop_gradient)
        with torch.enable_grad():
            attached = f(leaves)

        traces = solution.adjoint  # not the solution itself: its value, which will own `pull`, would never be freed

        def pull(grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return self._solve_adjoint(leaves, attached, grads, traces)

        return replace(solution, value=_Attach.apply(solution.value, pull, *attached))

    def _solve_adjoint(
        self, leaves: tuple[Tensor, ...], attached: tuple[Tensor, ...], grads: tuple[Tensor, ...], traces: list[Trace]
    ) -> tuple[Tensor, ...]:
        outputs = [i for i, part in enumerate(attached) if part.requires_grad]
        # the equation is linear: of cotangents of length one, none is so small that a residual takes it for zero
        sizes = lengths(grads)
        units = tuple(g / _beside(g, torch.where(sizes > 0, sizes, 1)) for g in grads)

        def linear(w: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            pulled = torch.autograd.grad(
                [attached[i] for i in outputs],
                leaves,
                [w[i] for i in outputs],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return tuple(g + p for g, p in zip(units, pulled, strict=True))

        solution = self.solver.solve(linear, units)
        traces.append(Trace(solution.residuals, solution.steps, solution.statuses))
        if not solution.converged:
            warnings.warn(f"The adjoint is approximate. {solution.message}", AdjointWarning, stacklevel=2)
        assert isinstance(solution.value, tuple)
        return tuple(part * _beside(part, sizes) for part in solution.value)


def _beside(part: Tensor, numbers: Tensor) -> Tensor:
    """One number a sample, `[N]`, shaped and typed to meet a part of the state."""
    return numbers.to(part.dtype).view(-1, *[1] * (part.ndim - 1))


def _drop_gradient(leaf: Tensor) -> None:
    leaf.grad = None


@dataclass(frozen=True)
class Phantom:
    """A few damped steps from the equilibrium, differentiated: an approximate gradient for `steps` evaluations' memory.

    `z <- (1 - damping) z + damping f(z)`; the value stays the solver's, the gradient is that of these steps: the
    truncated and damped Neumann series of the implicit one. Second derivatives raise.

    Args:
        steps: evaluations kept.
        damping: in (0, 1].

    Reference: Geng et al., On training implicit models, NeurIPS 2021, eq. 9.

    >>> Phantom(steps=3).damping
    0.5
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_steps(self.steps, self.damping)

    def differentiate(
        self, f: Update, z0: tuple[Tensor, ...], solve: Solve, callback: Callback | None = None
    ) -> Solution:
        """`solve(f, z0)`, whose value carries gradients to all that `f` closes over."""
        probe = _Probe(f)
        solution = solve(probe, z0)
        if not probe.differentiable:
            return solution
        assert isinstance(solution.value, tuple)
        attached = tuple(part.detach() for part in solution.value)
        with torch.enable_grad():
            for _ in range(self.steps):
                attached = _damped(attached, f(attached), self.damping)
        return replace(solution, value=_Attach.apply(solution.value, _unchanged, *attached))


def _unchanged(grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return grads


@dataclass(frozen=True)
class Unrolled:
    """The baseline: a fixed number of damped steps, whatever the solver, by backpropagation through time.

    Its memory grows with the steps, and nothing makes it converge. Gradients flow to the initial state too.

    Args:
        steps: evaluations taken and kept.
        damping: in (0, 1].
        norm: of the residuals it reports, as in `Anderson`.

    >>> Unrolled(steps=12).damping
    1.0
    """

    steps: int = 12
    damping: float = 1.0
    norm: str = "relative"

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_steps(self.steps, self.damping)
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}, got {self.norm!r}")

    def differentiate(
        self, f: Update, z0: tuple[Tensor, ...], solve: Solve, callback: Callback | None = None
    ) -> Solution:
        """The state after the steps, whose value carries gradients to all that `f` closes over."""
        z, batch = z0, z0[0].shape[0]
        history = torch.zeros(self.steps, batch, dtype=torch.float64, device=z0[0].device)
        for step in range(self.steps):
            value = f(z)
            with torch.no_grad():
                history[step] = residual(z, value, self.norm)
            z = _damped(z, value, self.damping)
            if callback is not None:
                callback(step + 1, float(history[step].max()) if batch else 0.0)
        residuals = history.cpu()
        statuses = [Status.FIXED_STEPS if last else Status.NONFINITE for last in residuals[-1].isfinite().tolist()]
        return Solution(residuals, torch.full((batch,), self.steps), tuple(statuses), z)


def _damped(z: tuple[Tensor, ...], value: tuple[Tensor, ...], damping: float) -> tuple[Tensor, ...]:
    return value if damping == 1 else tuple(torch.lerp(a, b, damping) for a, b in zip(z, value, strict=True))


def _check_steps(steps: int, damping: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < damping <= 1:
        raise ValueError(f"damping must be in (0, 1], got {damping}")
