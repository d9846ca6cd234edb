"""Fixed points of any update, found by a solver and differentiated by an adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from deqreg.equilibrium.adjoints import Adjoint, Implicit
from deqreg.equilibrium.solution import Solution, State
from deqreg.equilibrium.solvers import Anderson, Callback, Solver, Update

StateT = TypeVar("StateT", bound=State)


def fixed_point(
    f: Callable[[StateT], StateT],
    z0: StateT,
    *,
    solver: Solver = Anderson(),  # noqa: B008  frozen
    adjoint: Adjoint = Implicit(),  # noqa: B008  frozen
    callback: Callback | None = None,
) -> Solution:
    """Find `z* = f(z*)`, differentiably.

    Every sample, a slice of axis 0, converges on its own: once its residual passes the solver's test it is frozen, and
    what it becomes does not depend on its batch mates as long as `f` treats samples independently. Not to converge is a
    value, `Solution.status`, not an error; the best iterate comes back. Gradients flow to every tensor `f` closes over,
    not to `z0`; without one that wants a gradient, or under `torch.no_grad`, no graph is built.

    Args:
        f: the update, from a state to one of the same shapes. It may be evaluated more often than steps are counted. It
            must not change or keep the state it is given, whose memory is used again.
        z0: the initial state: a floating-point tensor `[N, ...]`, or a tuple of such with one N, on one device.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        callback: `callback(step, residual)` whenever the host looks at the device, with the batch's largest residual.
            What it raises ends the solve.

    Returns:
        The `Solution`.

    Raises:
        ValueError: when the state or what `f` returns breaks this contract.

    >>> import torch
    >>> rate = torch.tensor([[0.5], [0.9]], requires_grad=True)
    >>> solution = fixed_point(lambda z: rate * z + 1, torch.zeros(2, 1), solver=Anderson(tol=1e-5))
    >>> solution.value.flatten().round(decimals=3).tolist(), solution.status.value
    ([2.0, 10.0], 'converged')
    """
    parts = z0 if isinstance(z0, tuple) else (z0,)
    _check_state(parts)
    update = _on_tuples(f, z0)

    def solve(f: Update, z: tuple[Tensor, ...]) -> Solution:
        return solver.solve(f, z, callback)

    solution = adjoint.differentiate(update, parts, solve, callback)
    assert isinstance(solution.value, tuple)
    return solution if isinstance(z0, tuple) else replace(solution, value=solution.value[0])


def _on_tuples(f: Callable[[Any], Any], z0: State) -> Update:
    """The update on tuples, with its result checked and promoted to the state's dtypes."""
    single = not isinstance(z0, tuple)
    parts = (z0,) if single else z0
    names = ["f(z)"] if single else [f"f(z)[{i}]" for i in range(len(parts))]

    def update(z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value = f(z[0] if single else z)
        if single != isinstance(value, Tensor) or (not single and len(value) != len(parts)):
            wanted = "a tensor" if single else f"a tuple of {len(parts)} tensors"
            raise ValueError(f"f must return {wanted} as the state is, got {_describe(value)}")
        values = (value,) if isinstance(value, Tensor) else value
        return tuple(_check_part(n, v, p) for n, v, p in zip(names, values, parts, strict=True))

    return update


def _check_part(name: str, value: Tensor, part: Tensor) -> Tensor:
    if value.shape != part.shape or value.device != part.device:
        wanted, got = (f"{list(tensor.shape)} on {tensor.device}" for tensor in (part, value))
        raise ValueError(f"{name} must be {wanted}, got {got}")
    if torch.promote_types(value.dtype, part.dtype) != part.dtype:
        raise ValueError(f"{name} must be {part.dtype} as the state is, got {value.dtype}")
    return value.to(part.dtype)


def _check_state(parts: tuple[Tensor, ...]) -> None:
    shapes = [list(part.shape) for part in parts]
    if not parts or any(part.ndim < 1 or part.shape[0] != parts[0].shape[0] for part in parts):
        raise ValueError(f"z0 must be a tensor [N, ...] or a tuple of such with one N, got {shapes}")
    if any(part.dtype not in (torch.float32, torch.float64) for part in parts):
        raise ValueError(f"z0 must be float32 or float64, got {[part.dtype for part in parts]}")
    if any(part.device != parts[0].device for part in parts):
        raise ValueError(f"z0 must be on one device, got {[str(part.device) for part in parts]}")


def _describe(value: object) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
