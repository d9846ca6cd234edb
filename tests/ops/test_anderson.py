from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.ops import reference
from deqreg.ops.anderson import AndersonCounter, AndersonLevel, AndersonStatus
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_same_bits

RULE = {
    "memory": 4,
    "damping": 0.8,
    "regularisation": 1e-6,
    "tol": 1e-2,
    "growth": 2.0,
    "divergence": 50.0,
    "patience": 4,
    "relative": 1.0,
    "absolute": 1e-8,
}


@dataclass(frozen=True)
class Books:
    """Everything that a step changes, for a state of one tensor."""

    z: Tensor
    values: Tensor
    residuals: Tensor
    partials: Tensor
    gram: Tensor
    counters: Tensor
    levels: Tensor
    history: Tensor
    weights: Tensor

    @staticmethod
    def new(z: Tensor, slots: int, max_steps: int) -> Books:
        batch, wide = z.shape[0], {"dtype": torch.float64, "device": z.device}
        counters = torch.zeros(batch, len(AndersonCounter), dtype=torch.int64, device=z.device)
        counters[:, AndersonCounter.BEST] = -1
        return Books(
            z.clone(),
            z.new_zeros(slots, *z.shape),
            z.new_zeros(slots, *z.shape),
            torch.zeros(batch, ops.anderson_partials(z.shape[1:].numel()), slots + 1, **wide),
            torch.zeros(batch, slots, slots, **wide),
            counters,
            torch.zeros(batch, len(AndersonLevel), **wide),
            torch.zeros(max_steps, batch, **wide),
            torch.zeros(batch, slots, **wide),
        )

    def clone(self) -> Books:
        return Books(*(tensor.clone() for tensor in self.tensors()))

    def tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def step(self, value: Tensor, implementation: ModuleType, **rule: float) -> Books:
        """This state after one step, in a copy."""
        after = self.clone()
        implementation.anderson_update(after.z, value, after.values, after.residuals, after.partials, after.counters)
        implementation.anderson_solve(
            after.partials, after.gram, after.counters, after.levels, after.history, after.weights, **{**RULE, **rule}
        )
        implementation.anderson_mix(after.values, after.residuals, after.weights, after.levels, after.counters, after.z)
        return after


# sizes within a chunk of the sums, of several chunks, and not a multiple of any vector's width
CASES = [
    ((6, 3), 4, torch.float64),
    ((6, 3), 4, torch.float32),
    ((6, 2, 5, 7), 2, torch.float32),
    ((6, 3, 21, 23, 19), 5, torch.float32),
    ((6, 8192), 16, torch.float64),
    ((6, 16388), 7, torch.float32),
    ((6,), 3, torch.float64),
]


def awkward(step: int) -> Callable[[Tensor], Tensor]:
    """Six samples: a slow and an oscillating contraction, a limit cycle, a flight, one that breaks, one that leaps."""

    def f(z: Tensor) -> Tensor:
        rate = torch.tensor([0.9, -0.7, -1.0, 0.0, 0.8, 0.5], device=z.device, dtype=z.dtype)
        rate = rate.view(-1, *[1] * (z.ndim - 1))
        ramp = torch.linspace(0.3, 1, z[0].numel(), device=z.device, dtype=z.dtype).view(z.shape[1:])
        value = torch.sin(rate * ramp * z) + ramp
        value[3] = z[3] + 10.0**step
        if step in (2, 5, 6):
            value[4] = math.nan if step < 6 else math.inf
        if step in (3, 4):
            value[5] = value[5] * 40
        return value

    return f


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{list(c[0])} in {c[1]}")
def test_every_step_matches_reference(case: tuple, instruction_set: str) -> None:
    check_every_step(*case, device="cpu")


def check_every_step(shape: tuple[int, ...], slots: int, dtype: torch.dtype, device: str) -> None:
    """From each state along a run, one step of both: decisions alike, and numbers alike to rounding."""
    start = torch.linspace(-2, 2, math.prod(shape), dtype=dtype).view(shape).to(device)
    books = Books.new(start, slots, max_steps=30)
    seen = set()
    for step in range(30):
        value = awkward(step)(books.z)
        expected, books = books.step(value, reference), books.step(value, ops)
        assert torch.equal(books.counters, expected.counters)
        assert torch.equal(books.values.nan_to_num(7), expected.values.nan_to_num(7))
        assert torch.equal(books.residuals.nan_to_num(7), expected.residuals.nan_to_num(7))
        # sums of at most 30000 products in double, in different orders; partials off the history are undefined
        for name in ("gram", "levels", "history"):
            torch.testing.assert_close(
                getattr(books, name), getattr(expected, name), rtol=1e-9, atol=1e-12, equal_nan=True
            )
        # those through the inverse of a matrix of condition 1e6 at most, from the regularisation
        torch.testing.assert_close(books.weights, expected.weights, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(books.z, expected.z, rtol=1e-5, atol=1e-6, equal_nan=True)
        seen.update(books.counters[:, AndersonCounter.STATUS].tolist())
    assert {AndersonStatus.CONVERGED, AndersonStatus.DIVERGED} <= seen


def test_a_broken_update_ends_as_nonfinite_and_keeps_the_best() -> None:
    books = Books.new(torch.ones(1, 5), 3, max_steps=20).step(torch.full((1, 5), 2.0), ops)
    for _ in range(6):
        assert books.counters[0, AndersonCounter.STATUS] == AndersonStatus.RUNNING
        before = books.z.clone()
        books = books.step(torch.full((1, 5), math.nan), ops)
    assert books.counters[0, AndersonCounter.STATUS] == AndersonStatus.NONFINITE
    best = int(books.counters[0, AndersonCounter.BEST])
    assert torch.equal(books.values[best, 0], torch.full((5,), 2.0))
    # the fifth step back: 2^-5 of the damped step from 1 to 2
    torch.testing.assert_close(before, torch.full((1, 5), 1 + 0.8 / 32))


def test_frozen_samples_are_left_alone() -> None:
    books = Books.new(torch.randn(2, 300), 3, max_steps=5)
    for _ in range(3):
        books = books.step(torch.cos(books.z), ops)
    books.counters[0, AndersonCounter.STATUS] = AndersonStatus.CONVERGED
    after = books.step(torch.full((2, 300), 9.0), ops)
    for name in ("z", "gram", "counters", "levels", "weights"):
        assert torch.equal(getattr(after, name)[0], getattr(books, name)[0])
        assert not torch.equal(getattr(after, name)[1], getattr(books, name)[1])
    for name in ("values", "residuals", "history"):
        assert torch.equal(getattr(after, name)[:, 0], getattr(books, name)[:, 0])
        assert not torch.equal(getattr(after, name)[:, 1], getattr(books, name)[:, 1])


@pytest.mark.parametrize(("column", "number"), [("SLOT", 5), ("SLOT", -1), ("BEST", 3), ("STEPS", -2)])
def test_counters_out_of_range_write_nothing(column: str, number: int) -> None:
    books = Books.new(torch.zeros(1, 8), 3, max_steps=4)
    books.counters[0, AndersonCounter[column]] = number
    after = books.step(torch.ones(1, 8), ops)
    assert all(torch.equal(a, b) for a, b in zip(after.tensors(), books.tensors(), strict=True))


def test_more_steps_than_the_history_holds() -> None:
    books = Books.new(torch.zeros(1, 8), 3, max_steps=2)
    for _ in range(4):
        books = books.step(torch.cos(3 * books.z), ops, tol=0.0)
    assert books.history.shape == (2, 1)
    assert books.counters[0, AndersonCounter.STEPS] == 4


def test_the_weights_are_the_constrained_minimiser() -> None:
    """Against the closed form of the minimiser over the plane of weights that sum to one."""
    books = Books.new(torch.randn(1, 50, dtype=torch.float64), 4, max_steps=10)
    for _ in range(4):
        books = books.step(torch.randn(1, 50, dtype=torch.float64), ops, regularisation=0.0, growth=1e3)
    gram, weights = books.gram[0], books.weights[0]
    torch.testing.assert_close(gram, books.residuals[:, 0] @ books.residuals[:, 0].T)
    solved = torch.linalg.solve(gram, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(weights, solved / solved.sum())


def test_components_share_one_gram_matrix() -> None:
    """A state in two tensors, the second's partials after the first's, steps like the state in one."""
    z, value = torch.randn(2, 9000, dtype=torch.float64), torch.randn(2, 9000, dtype=torch.float64)
    whole = Books.new(z, 3, max_steps=4).step(value, ops)
    parts = Books.new(z, 3, max_steps=4)
    first, second = z[:, :8192].clone(), z[:, 8192:].clone()
    for part, of, offset in ((first, value[:, :8192], 0), (second, value[:, 8192:], 1)):
        rings = [part.new_zeros(3, *part.shape) for _ in range(2)]
        ops.anderson_update(part, of, *rings, parts.partials, parts.counters, offset)
    torch.testing.assert_close(parts.partials, whole.partials)


def run(start: Tensor, steps: int) -> Books:
    books = Books.new(start, 5, max_steps=steps)
    for _ in range(steps):
        books = books.step(torch.cos(2 * books.z), ops, tol=0.0, patience=99)
    return books


def test_same_bits_at_any_thread_count(threads: None) -> None:
    start = torch.randn(3, 50001)
    assert_same_bits(lambda: run(start, 8).tensors())


def some_books() -> tuple[Books, Tensor]:
    books = run(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 3)
    return books, torch.cos(books.z)


def test_opcheck() -> None:
    b, value = some_books()
    torch.library.opcheck(
        torch.ops.deqreg.anderson_update, (b.z, value, b.values, b.residuals, b.partials, b.counters, 0)
    )
    torch.library.opcheck(
        torch.ops.deqreg.anderson_solve,
        (b.partials, b.gram, b.counters, b.levels, b.history, b.weights, *RULE.values()),
    )
    torch.library.opcheck(torch.ops.deqreg.anderson_mix, (b.values, b.residuals, b.weights, b.levels, b.counters, b.z))


def test_compiles_and_exports() -> None:
    books, value = some_books()

    def step(value: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(Books(*tensors).step(value, ops).tensors())

    assert_compiles_and_exports(step, Sample("step", (value, *books.tensors())))


def test_empty_batch() -> None:
    books = Books.new(torch.zeros(0, 4), 3, max_steps=5)
    assert books.step(torch.zeros(0, 4), ops).z.shape == (0, 4)


def test_non_contiguous_value() -> None:
    books, value = Books.new(torch.zeros(2, 3, 4), 3, max_steps=5), torch.randn(2, 4, 3).transpose(1, 2)
    after, expected = books.step(value, ops), books.step(value.contiguous(), ops)
    assert torch.equal(after.z, expected.z)


def test_a_gradient_is_refused() -> None:
    books, value = Books.new(torch.zeros(2, 3), 3, max_steps=5), torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"anderson_update works in place and has no gradient: .*no_grad"):
        books.step(value, ops)
    with torch.no_grad():
        books.step(value, ops)
    with pytest.raises(RuntimeError, match="anderson_mix works in place"):
        ops.anderson_mix(
            books.values,
            books.residuals,
            books.weights,
            books.levels,
            books.counters,
            torch.zeros(2, 3).requires_grad_(),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(2, 4)}, r"value must match z, \[2, 3\] torch.float32, got \[2, 4\] torch.float32"),
        ({"z": torch.zeros(2, 3).long(), "value": torch.zeros(2, 3).long()}, r"z must be \[N, \.\.\.\], float32 or float64, got \[2, 3\] torch.int64"),
        ({"values": torch.zeros(1, 2, 3)}, r"values must be \[slots, 2, 3\] with 2 \.\.\. 16 slots, got \[1, 2, 3\]"),
        ({"residuals": torch.zeros(3, 2, 4)}, r"residuals must be \[slots, 2, 3\] with 2 \.\.\. 16 slots, got \[3, 2, 4\]"),
        ({"residuals": torch.zeros(4, 2, 3)}, r"residuals must match values, \[3, 2, 3\] torch.float32, got \[4, 2, 3\]"),
        ({"values": torch.zeros(3, 2, 3).double(), "residuals": torch.zeros(3, 2, 3).double()}, "values must be torch.float32 as z is, got torch.float64"),
        ({"counters": torch.zeros(2, 7).long()}, r"counters must be \[2, 8\] torch.int64, got \[2, 7\] torch.int64"),
        ({"partials": torch.zeros(2, 1, 3).double()}, r"partials must be \[2, P, 4\] torch.float64, got \[2, 1, 3\]"),
        ({"partials": torch.zeros(2, 4)}, r"partials must be \[2, P, 4\] torch.float64, got \[2, 4\] torch.float32"),
        ({"offset": 1}, r"partials must hold entries 1 \.\.\. 1, got 1 entries"),
    ],
)  # fmt: skip
def test_update_states_its_contract(change: dict[str, Any], message: str) -> None:
    b = Books.new(torch.zeros(2, 3), 3, max_steps=5)
    given = {"z": b.z, "value": b.z.clone(), "values": b.values, "residuals": b.residuals, "partials": b.partials}
    with pytest.raises(ValueError, match=message):
        ops.anderson_update(**{**given, "counters": b.counters, **change})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("gram", torch.zeros(2, 17, 17).double(), r"gram must be \[N, slots, slots\] with 2 \.\.\. 16 slots, got \[2, 17, 17\]"),
        ("gram", torch.zeros(2, 3, 4).double(), r"gram must be \[N, slots, slots\] .* got \[2, 3, 4\]"),
        ("levels", torch.zeros(2, 3).double(), r"levels must be \[2, 2\] torch.float64, got \[2, 3\]"),
        ("history", torch.zeros(5, 3).double(), r"history must be \[max_steps, 2\] torch.float64, got \[5, 3\]"),
        ("weights", torch.zeros(2, 4).double(), r"weights must be \[2, 3\] torch.float64, got \[2, 4\]"),
        ("weights", torch.zeros(2, 3, device="meta").double(), r"weights must be on cpu, got meta"),
    ],
)  # fmt: skip
def test_solve_states_its_contract(name: str, tensor: Tensor, message: str) -> None:
    books = replace(Books.new(torch.zeros(2, 3), 3, max_steps=5), **{name: tensor})
    with pytest.raises(ValueError, match=message):
        ops.anderson_solve(
            books.partials, books.gram, books.counters, books.levels, books.history, books.weights, **RULE
        )


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{list(c[0])} in {c[1]}")
def test_cuda_every_step_matches_reference(case: tuple) -> None:
    check_every_step(*case, device="cuda")


@pytest.mark.cuda
def test_cuda_unaligned_memory_and_same_bits_from_run_to_run() -> None:
    memory = torch.randn(3 * 4096 + 1, device="cuda")
    shifted = memory[1:].view(3, 4096)
    results = [run(shifted, 8), run(shifted.clone(), 8), run(shifted, 8)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0].tensors(), other.tensors(), strict=True))


@pytest.mark.cuda
def test_cuda_never_waits_and_replays_as_a_graph() -> None:
    start = torch.randn(2, 30000, device="cuda")
    expected = run(start, 6)
    books = Books.new(start, 5, max_steps=6)
    rule = {**RULE, "tol": 0.0, "patience": 99}

    def step() -> None:
        value = torch.cos(2 * books.z)
        ops.anderson_update(books.z, value, books.values, books.residuals, books.partials, books.counters)
        ops.anderson_solve(
            books.partials, books.gram, books.counters, books.levels, books.history, books.weights, **rule
        )
        ops.anderson_mix(books.values, books.residuals, books.weights, books.levels, books.counters, books.z)

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    before = books.clone()
    with torch.cuda.graph(graph):
        step()
    for kept, tensor in zip(before.tensors(), books.tensors(), strict=True):
        tensor.copy_(kept)
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(books.tensors(), expected.tensors(), strict=True))
