"""What every operator is held to: its reference twin, forward and backward, and torch's own checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]


@dataclass(frozen=True)
class Sample:
    """Arguments of an operator's public function; tensors that require a gradient are differentiated."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def inputs(self) -> list[Tensor]:
        everything = [*self.args, *self.kwargs.values()]
        return [a for a in everything if isinstance(a, Tensor) and a.requires_grad]

    def to(self, **to: Any) -> Sample:
        """The same sample of another dtype or device, with leaves of its own."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value.to(device=to["device"]) if isinstance(value, Tensor) and "device" in to else value
            return value.detach().to(**to).requires_grad_(value.requires_grad)

        return Sample(self.name, tuple(map(move, self.args)), {k: move(v) for k, v in self.kwargs.items()})


def outputs_and_gradients(function: Function, sample: Sample) -> tuple[list[Tensor], list[Tensor]]:
    out = function(*sample.args, **sample.kwargs)
    outs = list(out) if isinstance(out, Sequence) else [out]
    generator = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).sum() for o in outs)
    inputs = sample.inputs()
    grads = torch.autograd.grad(loss, inputs, allow_unused=True) if inputs else []
    return outs, [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads, strict=True)]


def assert_matches_reference(function: Function, reference: Function, sample: Sample, tolerance: float) -> None:
    """Every element of outputs and gradients, relative to the largest of its tensor."""
    actual, expected = outputs_and_gradients(function, sample), outputs_and_gradients(reference, sample)
    for a, e in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        scale = max(float(e.detach().abs().max()), 1.0) if e.numel() else 1.0
        torch.testing.assert_close(a, e, atol=tolerance * scale, rtol=0)


def assert_same_bits(call: Callable[[], Sequence[Tensor]]) -> None:
    """Ten runs at each of several thread counts. Wants the fixture `threads`, which puts the count back."""
    expected = None
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        for _ in range(10):
            found = call()
            expected = found if expected is None else expected
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def assert_compiles_and_exports(function: Function, sample: Sample) -> None:
    """One graph without a break, the same result and gradients; and a program that torch.export keeps whole."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_matches_reference(compiled, function, sample, 1e-12)

    class Module(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            return function(*args, **sample.kwargs)

    detached = tuple(a.detach() if isinstance(a, Tensor) else a for a in sample.args)
    program = torch.export.export(Module(), detached)
    torch.testing.assert_close(program.module()(*detached), function(*detached, **sample.kwargs))
