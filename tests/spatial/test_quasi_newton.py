from __future__ import annotations

import torch
from torch import Tensor

from deqreg.spatial.quasi_newton import minimise


def counted(function):
    """A function with its gradient, and the number of its calls."""
    calls = []

    def with_gradient(parameters: Tensor) -> tuple[float, Tensor]:
        calls.append(parameters)
        parameters = parameters.clone().requires_grad_()
        value = function(parameters)
        value.backward()
        return float(value.detach()), parameters.grad

    return with_gradient, calls


def rosenbrock(p: Tensor) -> Tensor:
    return (1 - p[:-1]).square().sum() + 100 * (p[1:] - p[:-1].square()).square().sum()


def test_follows_a_bent_valley_to_its_end() -> None:
    function, calls = counted(rosenbrock)
    start = torch.tensor([-1.2, 1.0, 0.5], dtype=torch.float64)
    found, value = minimise(function, start, steps=100, first_step=0.1, tolerance=1e-8)
    torch.testing.assert_close(found, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert value == float(rosenbrock(found))
    assert len(calls) < 150  # some evaluations more than steps: nearly every step is taken as it comes


def test_the_first_step_is_as_long_as_asked_however_steep_the_function() -> None:
    for steepness in (1e-6, 1e6):
        function, calls = counted(lambda p, by=steepness: by * p.square().sum())
        minimise(function, torch.tensor([8.0, 2.0]), steps=5, first_step=0.5, tolerance=1e-3)
        torch.testing.assert_close((calls[1] - calls[0]).abs().max(), torch.tensor(0.5), rtol=1e-4, atol=0)


def test_stays_where_nothing_brings_the_value_down() -> None:
    start = torch.tensor([0.25, -3.0])
    function, _ = counted(lambda p: p.sum() * 0.0)
    assert torch.equal(minimise(function, start, steps=10, first_step=1.0, tolerance=1e-3)[0], start)
    # a slope that promises what the values do not hold, as rounding leaves it at a minimum
    gave: list[Tensor] = []
    found, _ = minimise(
        lambda p: (gave.append(p) or 1.0, torch.full((2,), 1e-9)), start, steps=10, first_step=1.0, tolerance=1e-3
    )
    assert torch.equal(found, start)
    assert len(gave) < 15  # halved down to the tolerance and no further


def test_values_that_are_no_numbers_are_stepped_back_from() -> None:
    function, _ = counted(lambda p: (p[0].log() - 1).square() + (p[1] - 2).square())
    found, _ = minimise(
        function, torch.tensor([0.1, 0.0], dtype=torch.float64), steps=50, first_step=5.0, tolerance=1e-9
    )
    torch.testing.assert_close(found, torch.tensor([torch.e, 2.0], dtype=torch.float64), rtol=0, atol=1e-5)
