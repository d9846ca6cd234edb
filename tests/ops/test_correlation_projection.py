from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.ops import reference
from deqreg.ops.correlation_projection import gradient_by_samples
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def sample(
    name: str,
    shape: tuple[int, ...],
    radius: int,
    *,
    displaced: bool = True,
    bias: bool = True,
    channels: int = 3,
    batch: int = 2,
    outputs: int = 5,
) -> Sample:
    generator = torch.Generator().manual_seed(len(name))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    fixed, moving = (normal(batch, channels, *shape).requires_grad_() for _ in range(2))
    # four voxels of displacement put whole windows outside of these small images, on every side
    u = (normal(batch, len(shape), *shape) * 4).requires_grad_() if displaced else None
    weight = normal(outputs, (2 * radius + 1) ** len(shape)).requires_grad_()
    added = (normal(outputs).requires_grad_(),) if bias else ()
    return Sample(name, (fixed, moving, u, weight, *added), {"radius": radius})


SAMPLES = [
    sample("2-D", (7, 9), 1),
    sample("3-D", (4, 5, 6), 1),
    sample("in place", (4, 5, 6), 1, displaced=False),
    sample("2-D in place", (7, 9), 3, displaced=False, bias=False),
    sample("radius 0", (4, 5, 6), 0),
    sample("no bias", (4, 5, 6), 1, bias=False, outputs=1),
    sample("radius 2", (3, 4, 5), 2, batch=1, outputs=8),
    sample("radius 2 in place", (3, 4, 5), 2, batch=1, displaced=False),
    sample("radius 3", (2, 3, 4), 3, batch=1, outputs=2),
    sample("radius 3 in place", (2, 3, 4), 3, batch=1, displaced=False, outputs=3),
    sample("2-D radius 4", (5, 6), 4),
    sample("one voxel along two axes", (1, 6, 1), 1),
    # rows of several runs of the CPU kernel and a rest; more outputs than a CUDA block has at a time
    sample("long rows", (2, 3, 149), 1, channels=5, batch=1, outputs=7),
    sample("many outputs", (3, 4, 35), 1, batch=1, outputs=67),
    sample("many outputs in place", (3, 4, 35), 1, batch=1, outputs=67, displaced=False),
    sample("many tiles", (19, 21, 3), 1, batch=1),
]


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(ops.correlation_projection, reference.correlation_projection, s, 1e-12)


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_single_precision(s: Sample, instruction_set: str) -> None:
    # as for correlation, times the weights of a sum over the window
    assert_matches_reference(
        ops.correlation_projection, reference.correlation_projection, s.to(dtype=torch.float32), 2e-4
    )


@pytest.mark.parametrize("displaced", [False, True])
def test_projecting_by_the_identity_is_the_correlation(displaced: bool) -> None:
    fixed, moving = torch.randn(2, 2, 6, 9, 10, 33)
    u = torch.randn(2, 3, 9, 10, 33) if displaced else None
    found = ops.correlation_projection(fixed, moving, u, torch.eye(27), radius=1)
    assert torch.equal(found, ops.correlation(fixed, moving, u, radius=1))


@pytest.mark.parametrize("needed", range(5))
def test_only_the_gradient_that_is_asked_for(needed: int) -> None:
    s = SAMPLES[1]
    args = tuple(a.detach().requires_grad_(i == needed) for i, a in enumerate(s.args))
    one = Sample(s.name, args, s.kwargs)
    assert_matches_reference(ops.correlation_projection, reference.correlation_projection, one, 1e-12)
    grad = torch.randn(2, 5, 4, 5, 6, dtype=torch.float64)
    needs = [needed == i for i in range(3)] + [needed >= 3]
    gradients = torch.ops.deqreg.correlation_projection_gradient(*s.args[:4], grad, 1, *needs, False)
    assert [g.numel() > 0 for g in gradients] == needs


@pytest.mark.parametrize("s", SAMPLES[:6], ids=str)
def test_gradcheck(s: Sample) -> None:
    inputs = s.inputs()

    def call(*inputs: Tensor) -> Tensor:
        left = list(inputs)
        args = [left.pop(0) if isinstance(a, Tensor) else a for a in s.args]
        return ops.correlation_projection(*args, **s.kwargs)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("s", [SAMPLES[0], SAMPLES[2], SAMPLES[5]], ids=str)
def test_opcheck(s: Sample) -> None:
    fixed, moving, u, weight, *bias = s.args
    radius = s.kwargs["radius"]
    torch.library.opcheck(
        torch.ops.deqreg.correlation_projection, (fixed, moving, u, weight, bias[0] if bias else None, radius)
    )
    grad = ops.correlation_projection(*s.args, radius=radius).detach()
    inputs = [a if a is None else a.detach() for a in (fixed, moving, u, weight)]
    needs = (True, False, u is not None, True)
    torch.library.opcheck(torch.ops.deqreg.correlation_projection_gradient, (*inputs, grad, radius, *needs, False))


def test_compiles_and_exports() -> None:
    s = SAMPLES[0]
    assert_compiles_and_exports(lambda *args: ops.correlation_projection(*args, radius=1), Sample(s.name, s.args))


@pytest.mark.parametrize("needs", [(True, True, True, True), (False, True, False, False), (False, False, False, True)])
@pytest.mark.parametrize("s", [SAMPLES[0], SAMPLES[1], SAMPLES[2]], ids=str)
def test_gradient_by_samples_is_the_gradient(s: Sample, needs: tuple[bool, ...]) -> None:
    # what CUDA does, on the CPU
    fixed, moving, u, weight, _ = (a if a is None else a.detach() for a in s.args)
    needs = (*needs[:2], needs[2] and u is not None, needs[3])
    grad = torch.randn(2, 5, *fixed.shape[2:], dtype=torch.float64)
    args = (fixed, moving, u, weight, grad, 1, *needs, False)
    found, expected = gradient_by_samples(*args), torch.ops.deqreg.correlation_projection_gradient(*args)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-12 * max(1.0, float(e.abs().sum())), rtol=0)


def test_non_contiguous_inputs() -> None:
    fixed, moving = torch.randn(2, 1, 6, 5, 4, 3, dtype=torch.float64).permute(0, 1, 5, 4, 3, 2)
    u = torch.randn(1, 6, 5, 4, 3, dtype=torch.float64).permute(0, 4, 3, 2, 1)
    weight, bias = torch.randn(27, 4, dtype=torch.float64).T, torch.randn(8, dtype=torch.float64)[::2]
    inputs = [fixed, moving, u, weight, bias]
    dense = ops.correlation_projection(*(t.contiguous() for t in inputs), radius=1)
    assert torch.equal(ops.correlation_projection(*inputs, radius=1), dense)


def test_empty_batch_and_no_outputs() -> None:
    fixed = torch.zeros(0, 2, 4, 4, requires_grad=True)
    weight = torch.ones(3, 9, requires_grad=True)
    found = ops.correlation_projection(fixed, fixed, torch.zeros(0, 2, 4, 4), weight, radius=1)
    assert found.shape == (0, 3, 4, 4)
    by_fixed, by_weight = torch.autograd.grad(found.sum(), (fixed, weight))
    assert by_fixed.shape == fixed.shape
    assert not by_weight.any()
    assert ops.correlation_projection(FEATURES, FEATURES, None, torch.ones(0, 9), radius=1).shape == (1, 0, 4, 4)


@pytest.mark.parametrize("displaced", [False, True])
def test_same_bits_at_any_thread_count(displaced: bool, threads: None) -> None:
    shape = (33, 34, 35)
    fixed, moving = (torch.randn(2, 8, *shape, requires_grad=True) for _ in range(2))
    u = (torch.randn(2, 3, *shape) * 3).requires_grad_() if displaced else None
    weight, bias = torch.randn(5, 27, requires_grad=True), torch.randn(5, requires_grad=True)
    inputs = [fixed, moving, weight, bias, *([] if u is None else [u])]

    def call() -> list[Tensor]:
        found = ops.correlation_projection(fixed, moving, u, weight, bias, radius=1)
        return [found, *torch.autograd.grad(found.square().sum(), inputs)]

    assert_same_bits(call)


def test_second_derivative_raises() -> None:
    fixed, weight = torch.randn(1, 2, 4, 5, requires_grad=True), torch.ones(1, 9)
    out = ops.correlation_projection(fixed, fixed, None, weight, radius=1)
    (first,) = torch.autograd.grad(out.sum(), fixed, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


FEATURES, WEIGHT = torch.zeros(1, 2, 4, 4), torch.zeros(3, 9)


@pytest.mark.parametrize(
    ("moving", "u", "weight", "bias", "message"),
    [
        (FEATURES[:, :1], None, WEIGHT, None, r"moving must match fixed, \[1, 2, 4, 4\] torch.float32, got"),
        (FEATURES, torch.zeros(1, 3, 4, 4), WEIGHT, None, r"displacement must be \[1, 2, H, W\], got \[1, 3, 4, 4\]"),
        (FEATURES, None, WEIGHT[:, 1:], None, r"weight must be \[O, 9\] for a radius of 1, got \[3, 8\]"),
        (FEATURES, None, WEIGHT[0], None, r"weight must be \[O, 9\] for a radius of 1, got \[9\]"),
        (FEATURES, None, WEIGHT.double(), None, r"weight must be torch.float32, got torch.float64"),
        (FEATURES, None, WEIGHT, torch.zeros(2), r"bias must be \[3\], got \[2\]"),
        (FEATURES, None, WEIGHT, torch.zeros(3).double(), r"bias must be torch.float32, got torch.float64"),
        (FEATURES, None, WEIGHT.to("meta"), None, r"weight must be on cpu, got meta"),
    ],
)  # fmt: skip
def test_errors_state_the_contract(
    moving: Tensor, u: Tensor | None, weight: Tensor, bias: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ops.correlation_projection(FEATURES, moving, u, weight, bias, radius=1)


@pytest.mark.cuda
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_cuda_matches_reference(s: Sample) -> None:
    on_gpu = s.to(device="cuda")
    assert_matches_reference(ops.correlation_projection, reference.correlation_projection, on_gpu, 1e-12)
    single = s.to(device="cuda", dtype=torch.float32)
    assert_matches_reference(ops.correlation_projection, reference.correlation_projection, single, 2e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("displaced", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_half_storage(dtype: torch.dtype, displaced: bool) -> None:
    fixed, moving = (torch.randn(1, 9, 6, 7, 40, device="cuda").to(dtype) for _ in range(2))
    u = torch.randn(1, 3, 6, 7, 40, device="cuda") * 3 if displaced else None
    weight, bias = (torch.randn(*size, device="cuda").to(dtype) for size in ((5, 27), (5,)))
    found = ops.correlation_projection(fixed, moving, u, weight, bias, radius=1)
    expected = ops.correlation_projection(fixed.float(), moving.float(), u, weight.float(), bias.float(), radius=1)
    # sums are float32 on both sides: what differs is the rounding of what is stored
    torch.testing.assert_close(found, expected.to(dtype))
