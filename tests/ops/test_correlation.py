from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.ops import reference
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def sample(
    name: str, shape: tuple[int, ...], radius: int, *, displaced: bool = True, channels: int = 3, batch: int = 2
) -> Sample:
    generator = torch.Generator().manual_seed(len(name))
    fixed, moving = (
        torch.randn(batch, channels, *shape, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(2)
    )
    # four voxels of displacement put whole windows outside of these small images, on every side
    u = torch.randn(batch, len(shape), *shape, dtype=torch.float64, generator=generator) * 4
    return Sample(name, (fixed, moving, u.requires_grad_()) if displaced else (fixed, moving), {"radius": radius})


SAMPLES = [
    sample("2-D", (7, 9), 1),
    sample("3-D", (4, 5, 6), 1),
    sample("in place", (4, 5, 6), 1, displaced=False),
    sample("2-D in place", (7, 9), 3, displaced=False),
    sample("radius 0", (4, 5, 6), 0),
    sample("radius 0 in place", (4, 5, 6), 0, displaced=False),
    sample("radius 2", (3, 4, 5), 2, batch=1),
    sample("radius 3", (2, 3, 4), 3, batch=1),
    sample("2-D radius 4", (5, 6), 4),
    sample("2-D radius 4 in place", (5, 6), 4, displaced=False),
    sample("one voxel along two axes", (1, 6, 1), 1),
    sample("one channel", (4, 5, 6), 1, channels=1),
    # rows of several runs of the CPU kernel and a rest, boxes that are cut
    sample("long rows", (2, 3, 149), 1, channels=5, batch=1),
    sample("long rows in place", (2, 3, 149), 2, channels=5, batch=1, displaced=False),
    sample("many tiles", (19, 21, 3), 1, batch=1),
]


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(ops.correlation, reference.correlation, s, 1e-12)


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_single_precision(s: Sample, instruction_set: str) -> None:
    # coordinates up to 150 carry an error of 150 * 2^-24 into the weights, times a few features of size 4
    assert_matches_reference(ops.correlation, reference.correlation, s.to(dtype=torch.float32), 1e-4)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradient_that_is_asked_for(needs: tuple[bool, bool, bool]) -> None:
    s = SAMPLES[1]
    args = tuple(a.detach().requires_grad_(need) for a, need in zip(s.args, needs, strict=True))
    assert_matches_reference(ops.correlation, reference.correlation, Sample(s.name, args, s.kwargs), 1e-12)
    gradients = torch.ops.deqreg.correlation_gradient(*s.args, ops.correlation(*s.args, **s.kwargs), 1, *needs, False)
    assert [g.numel() > 0 for g in gradients] == list(needs)


@pytest.mark.parametrize("s", SAMPLES[:6], ids=str)
def test_gradcheck(s: Sample) -> None:
    assert torch.autograd.gradcheck(lambda *args: ops.correlation(*args, **s.kwargs), s.args, fast_mode=True)


@pytest.mark.parametrize("s", [SAMPLES[0], SAMPLES[2]], ids=str)
def test_opcheck(s: Sample) -> None:
    fixed, moving, *rest = s.args
    u, radius = rest[0] if rest else None, s.kwargs["radius"]
    torch.library.opcheck(torch.ops.deqreg.correlation, (fixed, moving, u, radius))
    grad = ops.correlation(*s.args, radius=radius).detach()
    inputs = (fixed.detach(), moving.detach(), None if u is None else u.detach(), grad)
    torch.library.opcheck(torch.ops.deqreg.correlation_gradient, (*inputs, radius, True, False, u is not None, False))


@pytest.mark.parametrize("s", [SAMPLES[0], SAMPLES[2]], ids=str)
def test_compiles_and_exports(s: Sample) -> None:
    radius = s.kwargs["radius"]
    bound = Sample(s.name, s.args)
    assert_compiles_and_exports(lambda *args: ops.correlation(*args, radius=radius), bound)


@pytest.mark.parametrize("dims", [2, 3])
def test_shifts_run_over_the_window_with_the_last_axis_fastest(dims: int) -> None:
    fixed = torch.zeros(1, 1, *[5] * dims, dtype=torch.float64)
    fixed[(0, 0, *[2] * dims)] = 1
    for k, delta in enumerate(torch.cartesian_prod(*[torch.arange(-1, 2)] * dims)):
        moving = fixed.roll(tuple(delta.tolist()), tuple(range(2, 2 + dims)))
        found = ops.correlation(fixed, moving, radius=1)[(0, slice(None), *[2] * dims)]
        assert found.argmax() == k
        assert found.sum() == 1


def test_zero_displacement_is_none() -> None:
    fixed, moving = torch.randn(2, 1, 4, 6, 7, 9, dtype=torch.float64)
    u = torch.zeros(1, 3, 6, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(ops.correlation(fixed, moving, u, radius=2), ops.correlation(fixed, moving, radius=2))


def test_a_window_far_outside_sees_the_outermost_voxel_and_no_slope() -> None:
    fixed, moving = torch.randn(2, 1, 2, 4, 5, dtype=torch.float64)
    u = torch.full((1, 2, 4, 5), 1e6, dtype=torch.float64, requires_grad=True)
    found = ops.correlation(fixed, moving, u, radius=1)
    expected = (fixed * moving[:, :, -1:, -1:]).sum(1) / 2**0.5
    torch.testing.assert_close(found, expected[:, None].expand_as(found))
    assert not torch.autograd.grad(found.sum(), u)[0].any()


def test_displacement_that_is_not_a_number_is_harmless() -> None:
    fixed = torch.randn(1, 2, 4, 5, 6, requires_grad=True)
    u = torch.full((1, 3, 4, 5, 6), float("nan"))
    u[:, 0] = float("inf")
    u.requires_grad_()
    found = ops.correlation(fixed, fixed, u, radius=1)
    assert found.shape == (1, 27, 4, 5, 6)
    assert torch.autograd.grad(found.sum(), u)[0].shape == u.shape


def test_windows_that_share_nothing() -> None:
    # neighbouring voxels sample opposite ends of a long image: no packed box holds more than a few
    shape = (20, 22, 24)
    fixed, moving = torch.randn(2, 1, 64, *shape)
    u = (torch.rand(1, 3, *shape) - 0.5) * 120
    at = tuple(torch.randint(0, 20, (20, 3)).T)
    found = ops.correlation(fixed, moving, u, radius=0)[0, 0]
    expected = (fixed * ops.warp(moving, u)).sum(1)[0] / 8
    torch.testing.assert_close(found[at], expected[at], atol=1e-4, rtol=0)


def test_non_contiguous_inputs() -> None:
    fixed, moving = torch.randn(2, 1, 6, 5, 4, 3, dtype=torch.float64).permute(0, 1, 5, 4, 3, 2)
    u = torch.randn(1, 6, 5, 4, 3, dtype=torch.float64).permute(0, 4, 3, 2, 1)
    dense = ops.correlation(fixed.contiguous(), moving.contiguous(), u.contiguous(), radius=1)
    assert torch.equal(ops.correlation(fixed, moving, u, radius=1), dense)


def test_empty_batch() -> None:
    fixed = torch.zeros(0, 2, 4, 4, requires_grad=True)
    found = ops.correlation(fixed, fixed, torch.zeros(0, 2, 4, 4), radius=1)
    assert found.shape == (0, 9, 4, 4)
    assert torch.autograd.grad(found.sum(), fixed)[0].shape == fixed.shape


@pytest.mark.parametrize("displaced", [False, True])
def test_same_bits_at_any_thread_count(displaced: bool, threads: None) -> None:
    shape = (33, 34, 35)
    inputs = [torch.randn(2, 8, *shape, requires_grad=True) for _ in range(2)]
    if displaced:
        inputs.append((torch.randn(2, 3, *shape) * 3).requires_grad_())

    def call() -> list[Tensor]:
        found = ops.correlation(*inputs, radius=1)
        return [found, *torch.autograd.grad(found.square().sum(), inputs)]

    assert_same_bits(call)


def test_second_derivative_raises() -> None:
    fixed = torch.randn(1, 2, 4, 5, requires_grad=True)
    (first,) = torch.autograd.grad(ops.correlation(fixed, fixed, radius=1).sum(), fixed, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


FEATURES = torch.zeros(1, 2, 4, 4)


@pytest.mark.parametrize(
    ("fixed", "moving", "u", "radius", "message"),
    [
        (torch.zeros(4, 4), FEATURES, None, 1, r"fixed must be \[N, C, H, W\] or \[N, C, D, H, W\], got \[4, 4\]"),
        (FEATURES[:, :0], FEATURES[:, :0], None, 1, r"fixed must have at least one channel, got \[1, 0, 4, 4\]"),
        (FEATURES, FEATURES[:, :1], None, 1, r"moving must match fixed, \[1, 2, 4, 4\] torch.float32, got \[1, 1, 4, 4\]"),
        (FEATURES, FEATURES.double(), None, 1, r"moving must match fixed, .*, got \[1, 2, 4, 4\] torch.float64"),
        (FEATURES, FEATURES, torch.zeros(1, 3, 4, 4), 1, r"displacement must be \[1, 2, H, W\], got \[1, 3, 4, 4\]"),
        (FEATURES, FEATURES, torch.zeros(1, 2, 4, 5), 1, r"on the grid of fixed, \[4, 4\], got \[4, 5\]"),
        (FEATURES, FEATURES, None, 5, r"radius must be 0 to 4, got 5"),
        (FEATURES, FEATURES, None, -1, r"radius must be 0 to 4, got -1"),
    ],
)  # fmt: skip
def test_errors_state_the_contract(fixed: Tensor, moving: Tensor, u: Tensor | None, radius: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.correlation(fixed, moving, u, radius=radius)


@pytest.mark.cuda
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_cuda_matches_reference(s: Sample, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        assert_matches_reference(ops.correlation, reference.correlation, s.to(device="cuda"), 1e-12)
        single = s.to(device="cuda", dtype=torch.float32)
        assert_matches_reference(ops.correlation, reference.correlation, single, 1e-4)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.cuda
@pytest.mark.parametrize("displaced", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_half_storage(dtype: torch.dtype, displaced: bool) -> None:
    fixed, moving = (torch.randn(1, 9, 6, 7, 40, device="cuda").to(dtype) for _ in range(2))
    field = [torch.randn(1, 3, 6, 7, 40, device="cuda") * 3] if displaced else []
    s = Sample("half", (fixed.requires_grad_(), moving.requires_grad_(), *field), {"radius": 1})
    wide = s.to(dtype=torch.float32)
    grad = torch.randn(1, 27, 6, 7, 40, device="cuda").to(dtype)
    found, expected = ops.correlation(*s.args, radius=1), ops.correlation(*wide.args, radius=1)
    # sums are float32 on both sides: what differs is the rounding of what is stored
    torch.testing.assert_close(found, expected.to(dtype))
    gradients = torch.autograd.grad(found, s.inputs(), grad)
    for actual, exact in zip(gradients, torch.autograd.grad(expected, wide.inputs(), grad.float()), strict=True):
        torch.testing.assert_close(actual, exact.to(dtype))


@pytest.mark.cuda
@pytest.mark.parametrize("displaced", [False, True])
def test_cuda_deterministic_gradients_are_the_same_bits(displaced: bool) -> None:
    shape = (20, 21, 70)
    inputs = [torch.randn(2, 8, *shape, device="cuda", requires_grad=True) for _ in range(2)]
    if displaced:
        inputs.append((torch.randn(2, 3, *shape, device="cuda") * 3).requires_grad_())
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(10):
            found = ops.correlation(*inputs, radius=1)
            results.append((found, *torch.autograd.grad(found.square().sum(), inputs)))
    finally:
        torch.use_deterministic_algorithms(False)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
