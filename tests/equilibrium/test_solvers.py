from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqreg.equilibrium import Anderson, Picard, Status, fixed_point
from deqreg.equilibrium.state import AndersonState
from tests.equilibrium.maps import linear

SOLVERS = [
    Picard(tol=1e-10, max_steps=500),
    Anderson(tol=1e-10, max_steps=100),
    Anderson(memory=1, tol=1e-10, max_steps=500),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=["picard", "anderson", "memory of one"])
def test_linear_contraction_in_closed_form(solver: Any) -> None:
    f = linear(-0.4, 0.8, batch=3)
    solution = fixed_point(f, torch.zeros(3, 40, dtype=torch.float64), solver=solver)
    assert solution.status is Status.CONVERGED
    assert solution.converged
    # the error is at most 1 / (1 - 0.8) times the residual
    torch.testing.assert_close(solution.value, f.equilibrium, atol=1e-8, rtol=0)


def test_anderson_needs_far_fewer_steps_than_picard() -> None:
    f, z0 = linear(0.0, 0.99), torch.zeros(1, 40, dtype=torch.float64)
    picard = fixed_point(f, z0, solver=Picard(tol=1e-5, max_steps=2000))
    anderson = fixed_point(f, z0, solver=Anderson(tol=1e-5, max_steps=2000))
    assert picard.converged
    assert anderson.converged
    # Picard loses 1 % a step; a window of five acts like a short Krylov method
    assert int(anderson.steps) * 5 < int(picard.steps)


def test_anderson_solves_where_picard_diverges() -> None:
    f, z0 = linear(-3.0, 0.9), torch.zeros(1, 40, dtype=torch.float64)
    assert fixed_point(f, z0, solver=Picard()).status is Status.DIVERGED
    solution = fixed_point(f, z0, solver=Anderson(tol=1e-6, max_steps=500))
    assert solution.converged
    torch.testing.assert_close(solution.value, f.equilibrium, atol=1e-3, rtol=0)


def test_full_memory_ends_like_a_krylov_method() -> None:
    # a linear map on 6 unknowns is solved once 7 residuals are mixed (Walker & Ni, theorem 2.2)
    f = linear(-0.9, 0.9, size=6)
    solver = Anderson(memory=8, tol=1e-11, regularisation=1e-12)
    solution = fixed_point(f, torch.zeros(1, 6, dtype=torch.float64), solver=solver)
    assert solution.steps.tolist() == [8]


def test_residuals_are_those_of_the_state_and_fall_to_the_tolerance() -> None:
    f, seen = linear(-0.5, 0.5, batch=2), []

    def watched(z: Tensor) -> Tensor:
        seen.append(z.clone())
        return f(z)

    z0 = torch.zeros(2, 40, dtype=torch.float64)
    solution = fixed_point(watched, z0, solver=Anderson(tol=1e-4, check_every=1))
    assert solution.residuals.shape == (int(solution.steps.max()), 2)
    for n in range(2):
        for k in range(int(solution.steps[n])):
            value = f(seen[k])[n]
            expected = (value - seen[k][n]).norm() / value.norm()
            torch.testing.assert_close(solution.residuals[k, n], expected)
    assert (solution.residuals[-1] <= 1e-4).all()
    assert (solution.residuals[-2].max()) > 1e-4


@pytest.mark.parametrize(("norm", "expected"), [("relative", 1 / 3), ("absolute", math.sqrt(8) / 2), ("rms", 0.5)])
def test_norms(norm: str, expected: float) -> None:
    solution = fixed_point(lambda z: z + 0.5, torch.ones(1, 2, 4), solver=Picard(tol=0, max_steps=1, norm=norm))
    torch.testing.assert_close(float(solution.residuals), expected)


@pytest.mark.parametrize("solver", [Picard(), Anderson(memory=3)], ids=["picard", "anderson"])
def test_a_map_without_a_fixed_point_returns_its_best_iterate(solver: Any) -> None:
    # ||f(z) - z|| = |z^2 + 1| has its least value at 0 and no zero
    evaluated = []

    def f(z: Tensor) -> Tensor:
        value = z * z + z + 1
        evaluated.append((float((value - z).abs()), value.clone()))
        return value

    solution = fixed_point(f, torch.full((1, 1), -2.0), solver=solver)
    assert solution.status in (Status.DIVERGED, Status.STAGNATED, Status.MAX_STEPS)
    assert torch.equal(solution.value, min(evaluated, key=lambda pair: pair[0])[1])
    assert solution.status.sentence in solution.message


def test_picard_on_an_expanding_map_says_so_and_keeps_the_first_iterate() -> None:
    solution = fixed_point(lambda z: 2 * z + 1, torch.zeros(1, 3), solver=Picard())
    assert solution.status is Status.DIVERGED
    # ||f(z) - z|| doubles, so that the start is the best and f of it is returned
    torch.testing.assert_close(solution.value, torch.ones(1, 3))
    # 2^10 is the first power above the growth of 1000 that means divergence
    assert solution.steps.tolist() == [11]


def test_the_best_iterate_comes_back_when_steps_run_out() -> None:
    evaluated = []

    def f(z: Tensor) -> Tensor:
        value = torch.cos(3 * z) + 0.2 * z
        evaluated.append((float((value - z).norm()), value.clone()))
        return value

    solution = fixed_point(f, torch.ones(1, 5) * 2, solver=Anderson(memory=3, tol=0, max_steps=9, patience=None))
    assert solution.status is Status.MAX_STEPS
    best = min(evaluated, key=lambda pair: pair[0])
    assert torch.equal(solution.value, best[1])
    assert not torch.equal(solution.value, evaluated[-1][1])


def test_the_best_iterate_outlives_the_ring() -> None:
    # every step after the first is worse, for longer than the memory of two holds
    values = iter([0.1, *range(1, 12)])
    solution = fixed_point(
        lambda z: z + next(values), torch.zeros(1, 1), solver=Anderson(memory=2, tol=0, max_steps=10, divergence=1e6)
    )
    torch.testing.assert_close(float(solution.value), 0.1)


def test_nonfinite_at_the_start_returns_the_start() -> None:
    solution = fixed_point(lambda z: z / 0 * 0, torch.ones(1, 2))
    assert solution.status is Status.NONFINITE
    assert solution.steps.tolist() == [1]
    assert torch.equal(solution.value, torch.ones(1, 2))


def test_nonfinite_later_is_stepped_back_from() -> None:
    # log of a negative number once the step is too long: the half-length Picard step from the best iterate stays inside
    def f(z: Tensor) -> Tensor:
        return z - 3 * torch.log(z)

    solution = fixed_point(f, torch.full((1, 1), 3.0, dtype=torch.float64), solver=Anderson(tol=1e-8))
    assert solution.converged
    torch.testing.assert_close(float(solution.value), 1.0, atol=1e-7, rtol=0)


def test_nonfinite_where_no_step_back_helps() -> None:
    calls = []

    def f(z: Tensor) -> Tensor:
        calls.append(1)
        return z + 1 if len(calls) == 1 else z * math.nan

    solution = fixed_point(f, torch.zeros(1, 2), solver=Anderson())
    assert solution.status is Status.NONFINITE
    assert torch.equal(solution.value, torch.ones(1, 2))


@pytest.mark.parametrize("memory", [1, 2, 5])
@pytest.mark.parametrize("regularisation", [0.0, 1e-6])
def test_singular_histories(memory: int, regularisation: float) -> None:
    solver = Anderson(memory=memory, regularisation=regularisation, max_steps=30)
    constant = torch.tensor([[3.0, -1.0]])
    solution = fixed_point(lambda z: constant.clone(), torch.zeros(1, 2), solver=solver)
    assert solution.converged
    assert torch.equal(solution.value, constant)
    identical = fixed_point(lambda z: z + 1, torch.zeros(1, 2), solver=solver)  # one residual, over and over
    assert identical.status is Status.STAGNATED
    assert identical.value.isfinite().all()
    zero = fixed_point(lambda z: z * 0.5, torch.zeros(1, 2), solver=solver)  # 0 / 0
    assert zero.converged
    assert zero.residuals.tolist() == [[0.0]]


def test_stagnation_at_the_limit_of_the_arithmetic() -> None:
    # a step of one unit in the last place changes f(z) - z by 1.9: every other number at best can map to itself
    shift = torch.linspace(1.0, 2.0, 40)[None]
    solution = fixed_point(lambda z: shift - 0.9 * z, torch.zeros(1, 40), solver=Anderson(tol=1e-12, max_steps=200))
    assert solution.status is Status.STAGNATED
    assert float(solution.residuals.min()) < 1e-6
    assert int(solution.steps) < 100


def rates(rate: Tensor) -> Any:
    return lambda z: torch.tanh(rate * z.roll(1, dims=1)) + 0.3


@pytest.mark.parametrize("solver", [Picard(tol=1e-5, max_steps=300), Anderson(tol=1e-5)], ids=["picard", "anderson"])
def test_a_sample_does_not_depend_on_its_batch(solver: Any) -> None:
    rate = torch.tensor([[0.1], [0.9], [2.5], [-1.7]], dtype=torch.float64)
    start = torch.randn(4, 6, dtype=torch.float64)
    together = fixed_point(rates(rate), start, solver=solver)
    assert len(set(together.steps.tolist())) > 1
    for n in range(4):
        alone = fixed_point(rates(rate[n : n + 1]), start[n : n + 1], solver=solver)
        assert torch.equal(alone.value[0], together.value[n])
        assert alone.steps[0] == together.steps[n]
        assert alone.statuses[0] is together.statuses[n]
        steps = int(alone.steps)
        assert torch.equal(alone.residuals[:, 0], together.residuals[:steps, n])
        # a frozen sample repeats its last residual
        assert (together.residuals[steps:, n] == together.residuals[steps - 1, n]).all()


def test_status_is_the_worst_of_the_batch() -> None:
    rate = torch.tensor([[0.5], [2.0]])
    solution = fixed_point(lambda z: rate * z + 1, torch.zeros(2, 1), solver=Picard())
    assert solution.statuses == (Status.CONVERGED, Status.DIVERGED)
    assert solution.status is Status.DIVERGED
    assert "growing" in solution.message


@pytest.mark.parametrize("every", [1, 3, 7])
def test_the_host_looks_only_so_often_and_the_result_does_not_depend_on_it(every: int) -> None:
    f, z0, looks, calls = linear(-0.6, 0.6), torch.zeros(1, 40, dtype=torch.float64), [], []

    def counted(z: Tensor) -> Tensor:
        calls.append(1)
        return f(z)

    solver = Anderson(tol=1e-6, check_every=every)
    solution = fixed_point(counted, z0, solver=solver, callback=lambda step, residual: looks.append((step, residual)))
    reference = fixed_point(f, z0, solver=Anderson(tol=1e-6))
    assert torch.equal(solution.value, reference.value)
    assert torch.equal(solution.steps, reference.steps)
    assert [step for step, _ in looks] == list(range(every, len(calls) + 1, every))
    assert len(calls) == math.ceil(int(reference.steps) / every) * every
    assert looks[-1][1] == float(solution.residuals[-1])


def test_nothing_waits_for_the_device_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    f, z0 = linear(-0.6, 0.6), torch.zeros(1, 40, dtype=torch.float64)
    looked = []
    running = AndersonState.running
    monkeypatch.setattr(AndersonState, "running", lambda self: (looked.append(1), running(self))[1])
    fixed_point(f, z0, solver=Anderson(tol=0, max_steps=10, check_every=5))
    assert len(looked) == 2


def test_the_callback_may_end_the_solve() -> None:
    def stop(step: int, residual: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fixed_point(linear(-0.6, 0.6), torch.zeros(1, 40, dtype=torch.float64), solver=Anderson(tol=0), callback=stop)


def test_a_tuple_is_one_state() -> None:
    f, z0 = linear(-0.5, 0.9, batch=2), torch.zeros(2, 40, dtype=torch.float64)

    def split(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        value = f(torch.cat([z[0], z[1].flatten(1)], 1))
        return value[:, :10], value[:, 10:].view(2, 5, 6)

    whole = fixed_point(f, z0, solver=Anderson(tol=1e-8))
    parts = fixed_point(split, (z0[:, :10], z0[:, 10:].view(2, 5, 6)), solver=Anderson(tol=1e-8))
    assert isinstance(parts.value, tuple)
    assert parts.steps.tolist() == whole.steps.tolist()
    # the Gram matrix is summed in another order
    torch.testing.assert_close(torch.cat([parts.value[0], parts.value[1].flatten(1)], 1), whole.value)


def test_components_may_differ_in_dtype_and_a_narrower_result_is_promoted() -> None:
    solution = fixed_point(
        lambda z: (z[0] * 0.5 + 1, (z[1] * 0.5 + 1).bfloat16()),
        (torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 3)),
        solver=Anderson(tol=1e-2),
    )
    assert solution.value[0].dtype == torch.float64
    assert solution.value[1].dtype == torch.float32


def test_awkward_states() -> None:
    scalars = fixed_point(lambda z: 0.5 * z + 1, torch.zeros(3))
    torch.testing.assert_close(scalars.value, torch.full((3,), 2.0))
    transposed = fixed_point(lambda z: 0.5 * z + 1, torch.zeros(4, 3, 2).permute(0, 2, 1))
    torch.testing.assert_close(transposed.value, torch.full((4, 2, 3), 2.0))
    empty = fixed_point(lambda z: 0.5 * z, torch.zeros(0, 3))
    assert empty.value.shape == (0, 3)
    assert empty.converged
    assert empty.message == "The batch is empty."


def test_an_update_may_return_what_it_was_given() -> None:
    solution = fixed_point(lambda z: z, torch.arange(4.0).view(1, 4))
    assert solution.converged
    assert torch.equal(solution.value, torch.arange(4.0).view(1, 4))
    a, b = torch.ones(1, 3), torch.full((1, 3), 3.0)
    swapped = fixed_point(lambda z: (z[1], z[0]), (a, b), solver=Anderson(tol=1e-6))
    assert swapped.converged
    torch.testing.assert_close(swapped.value[0], torch.full((1, 3), 2.0))


def test_the_start_is_left_as_it_was() -> None:
    z0 = torch.zeros(1, 4)
    fixed_point(lambda z: 0.5 * z + 1, z0)
    assert torch.equal(z0, torch.zeros(1, 4))


def test_memory_does_not_grow_with_the_steps() -> None:
    """Pointers of the state stay; the history of residuals is all that max_steps costs."""
    z0 = (torch.zeros(2, 64),)
    state = AndersonState(z0, Anderson(tol=0, memory=4, max_steps=50, patience=None))
    held = [state.gram, state.counters, state.history, state.partials, *state.z, *state.values, *state.residuals]
    before = [tensor.data_ptr() for tensor in held]
    for _ in range(50):
        state.advance(tuple(torch.cos(z) for z in state.z))
    assert [tensor.data_ptr() for tensor in held] == before
    elements = sum(tensor.numel() for tensor in (*state.z, *state.values, *state.residuals))
    assert elements == (2 * 4 + 1) * 2 * 64


def test_no_more_iterates_are_kept_than_there_may_be_steps() -> None:
    z0 = (torch.linspace(-1, 1, 64).view(1, 64),)
    few = Anderson(tol=0, memory=3, max_steps=3, patience=None)
    many = Anderson(tol=0, memory=8, max_steps=3, patience=None)
    held = [sum(values.numel() for values in AndersonState(z0, solver).values) for solver in (few, many)]
    assert held == [3 * 64, 3 * 64]
    ends = [fixed_point(torch.cos, z0[0], solver=solver).value for solver in (few, many)]
    assert torch.equal(*ends)


@settings(max_examples=25, deadline=None)
@given(
    low=st.floats(-0.95, 0.0),
    high=st.floats(0.0, 0.95),
    memory=st.integers(1, 8),
    damping=st.floats(0.3, 1.0),
    seed=st.integers(0, 1000),
)
def test_any_linear_contraction_is_solved(low: float, high: float, memory: int, damping: float, seed: int) -> None:
    f = linear(low, high, size=8, seed=seed)
    solver = Anderson(memory=memory, damping=damping, tol=1e-8, max_steps=3000, patience=None)
    solution = fixed_point(f, torch.zeros(1, 8, dtype=torch.float64), solver=solver)
    assert solution.converged
    error = (solution.value - f.equilibrium).norm() / f.equilibrium.norm()
    # 1 / (1 - 0.95) times the residual
    assert error < 2.1e-7


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"memory": 0}, r"memory must be in 1 \.\.\. 16, got 0"),
        ({"memory": 17}, r"memory must be in 1 \.\.\. 16, got 17"),
        ({"memory": 2.5}, r"memory must be in 1 \.\.\. 16, got 2.5"),
        ({"max_steps": 10.0}, "max_steps must be at least 1, got 10.0"),
        ({"tol": -1.0}, "tol must be at least 0, got -1.0"),
        ({"tol": math.nan}, "tol must be at least 0, got nan"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"damping": 0.0}, r"damping must be in \(0, 1\], got 0.0"),
        ({"damping": 1.5}, r"damping must be in \(0, 1\], got 1.5"),
        ({"regularisation": -1e-3}, r"regularisation must be in \[0, 1\], got -0.001"),
        ({"norm": "max"}, "norm must be one of 'relative', 'absolute', 'rms', got 'max'"),
        ({"growth": 1.0}, "growth must be above 1, got 1.0"),
        ({"divergence": 0.5}, "divergence must be above 1, got 0.5"),
        ({"patience": 0}, "patience must be at least 1 or None, got 0"),
        ({"check_every": 0}, "check_every must be at least 1 or None, got 0"),
    ],
)
def test_settings_are_checked_when_made(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Anderson(**kwargs)
    if next(iter(kwargs)) in Picard.__dataclass_fields__:
        with pytest.raises(ValueError, match=message):
            Picard(**kwargs)


@pytest.mark.cuda
def test_cuda_waits_only_where_the_host_looks() -> None:
    state = AndersonState((torch.zeros(3, 1000, device="cuda"),), Anderson(tol=1e-4))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(8):
            state.advance(tuple(torch.cos(z) for z in state.z))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not state.running()
    # cos z = z; the residual passed 1e-4, and 1 / (1 - |cos'|) is below 4
    torch.testing.assert_close(state.finish().value[0].cpu(), torch.full((3, 1000), 0.7390851), atol=1e-3, rtol=0)
