from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.equilibrium import AdjointWarning, Anderson, Implicit, Phantom, Picard, Status, Unrolled, fixed_point
from tests.equilibrium.maps import Linear, linear

TIGHT = Anderson(tol=1e-12, max_steps=300, patience=None)
EXACT = Implicit(TIGHT)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_linear_gradients_in_closed_form() -> None:
    f = linear(-0.7, 0.9, batch=2)
    matrix, shift = f.matrix.clone().requires_grad_(), f.shift.clone().requires_grad_()
    g = torch.randn(2, 40, dtype=torch.float64)
    z0 = torch.zeros(2, 40, dtype=torch.float64)
    value = fixed_point(lambda z: z @ matrix.T + shift, z0, solver=TIGHT, adjoint=EXACT).value
    value.backward(g)
    # z* = (I - A)^-1 b, so dL/db = (I - A)^-T g and dL/dA = dL/db z*^T
    w = torch.linalg.solve((torch.eye(40) - f.matrix).T, g.T).T
    assert relative_error(shift.grad, w) < 1e-9
    assert relative_error(matrix.grad, w.T @ f.equilibrium) < 1e-9


class Layer:
    """A tanh layer on a tuple state that closes over a weight and an input: a small weight-tied network."""

    def __init__(self, batch: int = 3) -> None:
        generator = torch.Generator().manual_seed(3)

        def leaf(*shape: int, scale: float) -> Tensor:
            return (torch.randn(*shape, dtype=torch.float64, generator=generator) * scale).requires_grad_()

        self.weight, self.mix = leaf(8, 8, scale=0.25), leaf(4, 8, scale=0.3)
        self.image = leaf(batch, 8, scale=1.0)
        self.z0 = (torch.zeros(batch, 8, dtype=torch.float64), torch.zeros(batch, 4, dtype=torch.float64))

    @property
    def inputs(self) -> list[Tensor]:
        return [self.weight, self.mix, self.image]

    def __call__(self, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(z[0] @ self.weight + self.image + z[1] @ self.mix)
        return hidden, torch.sin(z[0] @ self.mix.T) * 0.5 + 0.3 * z[1]

    def loss(self, value: tuple[Tensor, Tensor]) -> Tensor:
        return value[0].square().sum() + (value[1] * torch.arange(4.0)).sum()


def through_the_converged_loop(layer: Layer) -> list[Tensor]:
    z = layer.z0
    for _ in range(400):
        z = layer(z)
    return list(torch.autograd.grad(layer.loss(z), layer.inputs))


def test_implicit_is_backpropagation_through_the_converged_loop() -> None:
    layer = Layer()
    solution = fixed_point(layer, layer.z0, solver=TIGHT, adjoint=EXACT)
    gradients = torch.autograd.grad(layer.loss(solution.value), layer.inputs)
    for actual, expected in zip(gradients, through_the_converged_loop(layer), strict=True):
        # the target is 1e-5; both loops stop at 1e-12
        assert relative_error(actual, expected) < 1e-9
    assert solution.adjoint[0].converged


def test_the_default_gradient_is_as_good_as_its_tolerance() -> None:
    layer = Layer()
    solution = fixed_point(layer, layer.z0)
    gradients = torch.autograd.grad(layer.loss(solution.value), layer.inputs)
    for actual, expected in zip(gradients, through_the_converged_loop(layer), strict=True):
        # two tolerances of 1e-3, amplified by 1 / (1 - rate), rate near 0.7
        assert relative_error(actual, expected) < 1e-2


def test_phantom_approaches_the_implicit_gradient_with_its_steps() -> None:
    layer = Layer()
    expected = through_the_converged_loop(layer)
    errors = []
    for steps in (1, 4, 16, 64):
        value = fixed_point(layer, layer.z0, solver=TIGHT, adjoint=Phantom(steps, damping=0.8)).value
        gradients = torch.autograd.grad(layer.loss(value), layer.inputs)
        errors.append(max(relative_error(a, e) for a, e in zip(gradients, expected, strict=True)))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    # the truncated Neumann series converges at the rate 0.2 + 0.8 times that of the map
    assert errors[-1] < 1e-5


def test_unrolled_is_the_loop_itself() -> None:
    layer = Layer()
    z0 = tuple(part.clone().requires_grad_() for part in layer.z0)
    z = z0
    for _ in range(7):
        value = layer(z)
        z = tuple(0.4 * a + 0.6 * b for a, b in zip(z, value, strict=True))
    expected = torch.autograd.grad(layer.loss(z), [*layer.inputs, *z0])
    looks = []
    solution = fixed_point(
        layer, z0, adjoint=Unrolled(7, damping=0.6), callback=lambda step, residual: looks.append(step)
    )
    actual = torch.autograd.grad(layer.loss(solution.value), [*layer.inputs, *z0])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
    assert solution.status is Status.FIXED_STEPS
    assert solution.steps.tolist() == [7, 7, 7]
    assert solution.residuals.shape == (7, 3)
    assert looks == list(range(1, 8))
    reported = fixed_point(layer, layer.z0, solver=Picard(damping=0.6, tol=0, max_steps=7)).residuals
    torch.testing.assert_close(solution.residuals, reported)


def test_unrolled_reports_what_is_not_finite() -> None:
    solution = fixed_point(lambda z: z * torch.tensor([[1.0], [float("nan")]]), torch.ones(2, 1), adjoint=Unrolled(3))
    assert solution.statuses == (Status.FIXED_STEPS, Status.NONFINITE)


@pytest.mark.parametrize("adjoint", [Implicit(), Phantom()], ids=["implicit", "phantom"])
def test_the_value_is_the_same_with_and_without_a_gradient(adjoint: Any) -> None:
    layer = Layer()
    wanted = fixed_point(layer, layer.z0, adjoint=adjoint)
    with torch.no_grad():
        unwanted = fixed_point(layer, layer.z0, adjoint=adjoint)
    for a, b in zip(wanted.value, unwanted.value, strict=True):
        assert a.requires_grad
        assert not b.requires_grad
        assert torch.equal(a, b)


@pytest.mark.parametrize("adjoint", [Implicit(), Phantom(), Unrolled()], ids=["implicit", "phantom", "unrolled"])
def test_no_graph_where_nothing_wants_a_gradient(adjoint: Any) -> None:
    f = linear(-0.5, 0.5)
    calls = []

    def counted(z: Tensor) -> Tensor:
        calls.append(z.requires_grad)
        return f(z)

    solution = fixed_point(counted, torch.zeros(1, 40, dtype=torch.float64), adjoint=adjoint)
    assert not solution.value.requires_grad
    # nor an evaluation beyond the solver's
    assert len(calls) == int(solution.steps)
    assert not any(calls)


class Kept:
    """A tensor that a graph saved for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # its own graph would keep itself alive through this


@pytest.mark.parametrize("adjoint", [Implicit(), Phantom(1)], ids=["implicit", "phantom"])
def test_one_evaluation_is_kept_however_many_steps(adjoint: Any) -> None:
    layer = Layer()
    evaluations: list[list[weakref.ref[Kept]]] = []

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        evaluations[-1].append(weakref.ref(kept))
        return kept

    def watched(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        evaluations.append([])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            return layer(z)

    solution = fixed_point(watched, layer.z0, solver=TIGHT, adjoint=adjoint)
    gc.collect()
    assert int(solution.steps.max()) > 10
    assert [any(kept() for kept in saved) for saved in evaluations] == [False] * (len(evaluations) - 1) + [True]
    del solution
    gc.collect()
    assert not any(kept() for kept in evaluations[-1])


def test_backward_twice_and_accumulation() -> None:
    layer = Layer()
    solution = fixed_point(layer, layer.z0, solver=TIGHT, adjoint=EXACT)
    layer.loss(solution.value).backward(retain_graph=True)
    once = layer.weight.grad.clone()
    layer.loss(solution.value).backward()
    torch.testing.assert_close(layer.weight.grad, 2 * once)
    assert len(solution.adjoint) == 2
    with pytest.raises(RuntimeError, match="second time"):
        layer.loss(solution.value).backward()


@pytest.mark.parametrize("loss", [Layer.loss, lambda layer, value: value[0].sum()], ids=["square", "linear"])
@pytest.mark.parametrize("adjoint", [Implicit(), Phantom()], ids=["implicit", "phantom"])
def test_a_second_derivative_raises(adjoint: Any, loss: Any) -> None:
    layer = Layer()
    solution = fixed_point(layer, layer.z0, adjoint=adjoint)
    # a cotangent that is constant, of the linear loss, has no graph by which to notice a second derivative
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss(layer, solution.value), layer.image, create_graph=True)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("adjoint", [Implicit(), Phantom()], ids=["implicit", "phantom"])
def test_forward_mode_raises_and_through_the_unrolled_loop_is_right(adjoint: Any, wanted: bool) -> None:
    z0, shift = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 0.3, dtype=torch.float64)

    def by(adjoint: Any) -> tuple[Tensor, Tensor]:
        def value(shift: Tensor) -> Tensor:
            return fixed_point(lambda z: 0.5 * z + shift, z0, adjoint=adjoint).value

        return torch.func.jvp(value, (shift,), (torch.ones_like(shift),))

    with torch.set_grad_enabled(wanted), pytest.raises(RuntimeError, match=r"f\(z\) must have no tangent"):
        by(adjoint)
    # 1 + 1/2 + ... + 1/2^19
    assert by(Unrolled(20))[1].item() == 2 - 2**-19


def test_only_the_part_that_is_used_and_only_the_part_that_wants() -> None:
    layer, free = Layer(), torch.zeros(3, 2, dtype=torch.float64)

    def f(z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (*layer(z[:2]), free + 1)  # the last depends on nothing

    expected = through_the_converged_loop(layer)
    solution = fixed_point(f, (*layer.z0, free), solver=TIGHT, adjoint=EXACT)
    actual = torch.autograd.grad(layer.loss(solution.value[:2]), layer.inputs)
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 1e-9


def test_a_failing_adjoint_warns_and_says_how_far_it_came() -> None:
    f = linear(0.0, 0.99)
    shift = f.shift.clone().requires_grad_()
    few = Implicit(Picard(max_steps=2))
    solution = fixed_point(Linear(f.matrix, shift), f.equilibrium, solver=Anderson(max_steps=200), adjoint=few)
    with pytest.warns(AdjointWarning, match="approximate.*2 steps"):
        solution.value.sum().backward()
    assert solution.adjoint[0].status is Status.MAX_STEPS
    assert shift.grad.isfinite().all()


def test_the_gradient_does_not_depend_on_the_size_of_the_loss() -> None:
    scales = torch.tensor([1.0, 2.0**-40, 0.0], dtype=torch.float64)
    gradients = []
    for weights in (torch.ones_like(scales), scales):
        layer = Layer()
        value = fixed_point(layer, layer.z0).value
        loss = sum((weights[:, None] * (part + part.square())).sum() for part in value)
        gradients.append(torch.autograd.grad(loss, layer.image)[0])
    # a power of two changes no bit of the mantissa
    assert torch.equal(gradients[1], scales[:, None] * gradients[0])


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-36])
def test_a_small_loss_is_solved_for_in_single_precision_too(scale: float) -> None:
    shift = torch.ones(1, 3, requires_grad=True)
    solution = fixed_point(lambda z: 0.9 * z + shift, torch.zeros(1, 3))
    (scale * solution.value.sum()).backward()
    # 1 / (1 - 0.9), and the tolerance of 1e-3 is a tenth of what it may leave
    torch.testing.assert_close(shift.grad / scale, torch.full((1, 3), 10.0), rtol=1e-2, atol=0)


def test_a_zero_cotangent_costs_one_step() -> None:
    layer = Layer()
    solution = fixed_point(layer, layer.z0)
    gradients = torch.autograd.grad((solution.value[0] * 0).sum(), layer.inputs)
    assert solution.adjoint[0].steps.tolist() == [1, 1, 1]
    assert all((g == 0).all() for g in gradients)


def test_single_precision() -> None:
    layer = Layer()
    expected = through_the_converged_loop(layer)
    single = Layer()
    single.weight, single.mix, single.image = (t.detach().float().requires_grad_() for t in layer.inputs)
    value = fixed_point(
        single,
        tuple(part.float() for part in single.z0),
        solver=Anderson(tol=1e-5),
        adjoint=Implicit(Anderson(tol=1e-5)),
    ).value
    for a, e in zip(torch.autograd.grad(single.loss(value), single.inputs), expected, strict=True):
        assert relative_error(a.double(), e) < 1e-3


def test_a_registration_is_differentiable_in_its_images() -> None:
    """Through the package's own operators, against the converged loop: a small demons update."""
    generator = torch.Generator().manual_seed(0)
    shape = (12, 14)
    fixed = ops.gaussian(torch.randn(1, 1, *shape, generator=generator, dtype=torch.float64), 2.0) * 4
    moving = ops.gaussian(torch.randn(1, 1, *shape, generator=generator, dtype=torch.float64), 2.0) * 4
    fixed.requires_grad_()
    moving.requires_grad_()

    def f(u: Tensor) -> Tensor:
        warped = ops.warp(moving, u)
        slope = torch.cat(torch.gradient(fixed, dim=(2, 3)), 1)
        return ops.gaussian(0.9 * u + 0.5 * (fixed - warped) * slope, 1.0)

    z0 = torch.zeros(1, 2, *shape, dtype=torch.float64)
    value = fixed_point(f, z0, solver=TIGHT, adjoint=EXACT).value
    actual = torch.autograd.grad(value.square().sum(), [fixed, moving])
    u = z0
    for _ in range(300):
        u = f(u)
    expected = torch.autograd.grad(u.square().sum(), [fixed, moving])
    assert float(u.detach().abs().max()) > 0.1
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Phantom(steps=0), "steps must be at least 1, got 0"),
        (lambda: Phantom(damping=0.0), r"damping must be in \(0, 1\], got 0.0"),
        (lambda: Unrolled(steps=-1), "steps must be at least 1, got -1"),
        (lambda: Unrolled(damping=2.0), r"damping must be in \(0, 1\], got 2.0"),
        (lambda: Unrolled(norm="max"), "norm must be one of 'relative', 'absolute', 'rms', got 'max'"),
        (lambda: Implicit(solver=1e-3), r"solver must be a solver such as Anderson\(\), got 0.001"),
    ],
)
def test_settings_are_checked_when_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
