from __future__ import annotations

import pytest
import torch

from deqreg import ops
from deqreg.ops import reference
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def sample(
    name: str, out: tuple[int, ...], shape: tuple[int, ...], *, affine: bool = False, channels: int = 3, **kwargs: str
) -> Sample:
    generator = torch.Generator().manual_seed(len(name))
    dims = len(shape)
    values = torch.randn(2, channels, *out, dtype=torch.float64, generator=generator, requires_grad=True)
    u = (torch.randn(2, dims, *out, dtype=torch.float64, generator=generator) * 3).requires_grad_()
    maps = {}
    if affine:
        noise = torch.randn(2, dims, dims + 1, dtype=torch.float64, generator=generator) * 0.2
        maps["affine"] = (torch.eye(dims, dims + 1, dtype=torch.float64) + noise).requires_grad_()
    return Sample(name, (values, u, shape), {**maps, **kwargs})


SAMPLES = [
    sample("2-D", (6, 9), (7, 5)),
    sample("3-D", (4, 7, 3), (5, 6, 7)),
    sample("zeros", (4, 7, 3), (5, 6, 7), padding="zeros"),
    sample("affine", (4, 7, 3), (5, 6, 7), affine=True),
    sample("nearest zeros", (4, 7, 3), (5, 6, 7), affine=True, interpolation="nearest", padding="zeros"),
    sample("one voxel along an axis", (3, 3, 3), (1, 6, 1)),
    sample("long rows", (2, 3, 293), (3, 4, 301)),
]
# several boxes of the CPU kernel along each axis, the last ones cut short; vectors of channels and single ones left over
BOXES = [
    sample("boxes", (18, 34, 67), (20, 35, 70), channels=1),
    sample("boxes, zeros", (18, 34, 67), (20, 35, 70), affine=True, padding="zeros"),
    sample("2-D boxes", (37, 131), (40, 150)),
    sample("many channels", (10, 9, 67), (11, 10, 70), channels=29),
    sample("many channels, zeros", (10, 9, 67), (11, 10, 70), channels=17, affine=True, padding="zeros"),
    sample("2-D, many channels", (37, 71), (40, 90), channels=20),
    sample("many channels, one voxel along an axis", (3, 3, 3), (1, 12, 1), channels=16),
]


@pytest.mark.parametrize("s", [*SAMPLES, *BOXES], ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(ops.splat, reference.splat, s, 1e-12)


@pytest.mark.parametrize("s", SAMPLES[:4], ids=str)
def test_gradcheck(s: Sample) -> None:
    rest = {k: v for k, v in s.kwargs.items() if k != "affine"}
    inputs = (*s.args[:2], s.kwargs.get("affine"))
    assert torch.autograd.gradcheck(lambda v, u, a: ops.splat(v, u, s.args[2], affine=a, **rest), inputs)


@pytest.mark.parametrize("s", SAMPLES[:2], ids=str)
def test_opcheck(s: Sample) -> None:
    torch.library.opcheck(torch.ops.deqreg.splat, (*s.args[:2], list(s.args[2]), None, 0, 0, False))


@pytest.mark.parametrize("s", SAMPLES[:2], ids=str)
def test_compiles_and_exports(s: Sample) -> None:
    values, u, shape = s.args
    bound = Sample(s.name, (values, u))
    assert_compiles_and_exports(lambda v, d: ops.splat(v, d, shape), bound)


def test_is_the_adjoint_of_warp() -> None:
    u = torch.randn(1, 3, 4, 7, 3, dtype=torch.float64) * 2
    values, image = torch.randn(1, 2, 4, 7, 3, dtype=torch.float64), torch.randn(1, 2, 5, 6, 7, dtype=torch.float64)
    pushed = (ops.splat(values, u, image.shape[2:]) * image).sum()
    torch.testing.assert_close(pushed, (values * ops.warp(image, u)).sum())


def test_border_keeps_the_total() -> None:
    values = torch.rand(1, 1, 9, 8, 7, dtype=torch.float64)
    u = torch.randn(1, 3, 9, 8, 7, dtype=torch.float64) * 10
    torch.testing.assert_close(ops.splat(values, u, (6, 5, 4)).sum(), values.sum())


@pytest.mark.parametrize("channels", [1, 17])
@pytest.mark.parametrize("scatter", [0.5, 200.0], ids=["packed", "scattered"])
def test_boxes_whose_cells_lie_together_or_apart(scatter: float, channels: int, instruction_set: str) -> None:
    # the CPU kernel sums what a box adds by itself, or, where that reaches most of the image, in the image
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, channels, 12, 17, 66, generator=generator)
    u = torch.randn(1, 3, 12, 17, 66, generator=generator) * scatter
    expected = reference.splat(values.double(), u.double(), (40, 50, 90))
    # positions up to 1000 carry an error of 1000 * 2^-24 into the weights; on the faces some hundred values of size 1 meet
    torch.testing.assert_close(ops.splat(values, u, (40, 50, 90)).double(), expected, atol=5e-3, rtol=0)


def test_same_bits_at_any_thread_count(threads: None) -> None:
    values, u = torch.randn(1, 19, 33, 40, 50), torch.randn(1, 3, 33, 40, 50) * 4
    u[:, :, :16] /= 8  # half of the CPU kernel's boxes reach few voxels, half of them many
    assert_same_bits(lambda: [ops.splat(values, u, (33, 40, 50))])


def test_empty_output_grid_leaves_zeros() -> None:
    assert ops.splat(torch.zeros(1, 1, 0, 4), torch.zeros(1, 2, 0, 4), (3, 3)).abs().sum() == 0


@pytest.mark.parametrize(
    ("u", "shape", "message"),
    [
        (torch.zeros(1, 2, 5, 4), (4, 4), r"displacement must be on the grid of values, \[4, 4\], got \[5, 4\]"),
        (torch.zeros(1, 2, 4, 4), (4,), r"shape must be 2 positive sizes, got \[4\]"),
        (torch.zeros(1, 2, 4, 4), (4, 0), r"shape must be 2 positive sizes, got \[4, 0\]"),
    ],
)
def test_errors_state_the_contract(u: torch.Tensor, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.splat(torch.zeros(1, 1, 4, 4), u, shape)


@pytest.mark.cuda
@pytest.mark.parametrize("s", SAMPLES, ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda_matches_reference(s: Sample, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        assert_matches_reference(ops.splat, reference.splat, s.to(device="cuda"), 1e-12)
    finally:
        torch.use_deterministic_algorithms(False)
