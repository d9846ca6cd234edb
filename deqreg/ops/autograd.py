"""How an operator is given its gradient, and how one says that it has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_not_recorded(name: str) -> None:
    """Raise in a backward pass of which a graph is made, where the derivative of that graph would be wrong.

    `once_differentiable` notices only where a cotangent wants a gradient, and then not for `torch.autograd.grad`.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} has no second derivative: its gradient must be taken without a graph, got create_graph=True"
        )


def forbid_second_derivative(operator: str) -> None:
    """Make differentiating a backward operator raise.

    A backward operator without a formula of its own would return zeros for second derivatives, and no check notices.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(
            f"{operator} has no second derivative. For a penalty on the Jacobian of a map f take "
            "(f(z + e v) - f(z)) / e, which needs first derivatives only"
        )

    torch.library.register_autograd(operator, backward, setup_context=setup_context)
