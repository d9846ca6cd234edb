"""BFGS for a handful of parameters, those of an affine map.

torch's L-BFGS would do, but an optimiser of torch's imports its compiler when it is made: a second of every command.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], tuple[float, Tensor]]

# Weak Wolfe conditions: how much of the promised decrease a step must bring, and how much of the slope it may leave.
_DECREASE, _SLOPE = 1e-4, 0.9
_LINE_STEPS = 20  # a step grown a million times has no end in sight


def minimise(
    function: Function, start: Tensor, *, steps: int, first_step: float, tolerance: float
) -> tuple[Tensor, float]:
    """Minimise a smooth function by BFGS with a line search for the weak Wolfe conditions.

    Args:
        function: value and gradient `[P]` at parameters `[P]`.
        start: `[P]`, where to begin.
        steps: most line searches.
        first_step: largest change of a parameter that is tried first, before any curvature is known.
        tolerance: ends where no parameter changes by more.

    Returns:
        The best parameters met, `[P]`, and their value.

    Reference: Nocedal and Wright, Numerical Optimization, 2006, algorithm 6.1; for the line search, Lewis and Overton,
    Mathematical Programming 2013 (141:135-163), algorithm 2.6.

    >>> goal = torch.tensor([1.0, -2.0])
    >>> found, value = minimise(lambda p: (float((p - goal).square().sum()), 2 * (p - goal)), torch.zeros(2), steps=9,
    ...                         first_step=0.1, tolerance=1e-4)
    >>> found.round(decimals=3).tolist()
    [1.0, -2.0]
    """
    at, (value, gradient) = start, function(start)
    largest = float(gradient.abs().max())
    if largest == 0:
        return start, value
    inverse = torch.eye(len(start), dtype=start.dtype) * (first_step / largest)
    for step in range(steps):
        direction = -inverse @ gradient
        reach = float(direction.abs().max())
        if reach == 0:
            break
        shortest = tolerance / reach
        length, new_value, new_gradient = _search(function, at, value, gradient, direction, shortest)
        moved = length * direction
        change, at, value, gradient = new_gradient - gradient, at + moved, new_value, new_gradient
        bend = float(change @ moved)
        if length <= shortest:
            break
        if bend > 0:
            if step == 0:  # the first curvature that is known sets the scale of all
                inverse = torch.eye(len(start), dtype=start.dtype) * (bend / float(change @ change))
            left = torch.eye(len(start), dtype=start.dtype) - torch.outer(moved, change) / bend
            inverse = left @ inverse @ left.T + torch.outer(moved, moved) / bend
    return at, value


def _search(
    function: Function, at: Tensor, value: float, gradient: Tensor, direction: Tensor, shortest: float
) -> tuple[float, float, Tensor]:
    """A length along the direction with its value and gradient; 0 where none that matters brings the value down."""
    slope = float(gradient @ direction)
    low, high, length = 0.0, float("inf"), 1.0
    best = 0.0, value, gradient
    for _ in range(_LINE_STEPS):
        new_value, new_gradient = function(at + length * direction)
        if not new_value < value + _DECREASE * length * slope:  # not a number neither
            high = length
        else:
            best = length, new_value, new_gradient
            if float(new_gradient @ direction) >= _SLOPE * slope:
                break
            low = length
        length = (low + high) / 2 if high < float("inf") else 2 * low
        if high - low <= shortest:
            break
    return best
