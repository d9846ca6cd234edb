from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.ops import reference
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def sample(name: str, source: tuple[int, ...], target: tuple[int, ...]) -> Sample:
    generator = torch.Generator().manual_seed(len(name))
    image = torch.randn(2, 3, *source, dtype=torch.float64, generator=generator, requires_grad=True)
    return Sample(name, (image, target))


SAMPLES = [
    sample("2-D to twice", (7, 9), (14, 18)),
    sample("3-D to twice", (4, 5, 6), (8, 10, 12)),
    sample("odd sizes", (4, 5, 9), (7, 9, 17)),
    sample("to fewer", (9, 11, 34), (4, 3, 5)),
    sample("each axis its own way", (5, 8, 3), (10, 2, 40)),
    sample("the same", (4, 5, 6), (4, 5, 6)),
    sample("from and to one voxel", (1, 6, 3), (5, 1, 3)),
]


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(ops.resize, reference.resize, s, 1e-12)


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_is_torchs_interpolation(s: Sample) -> None:
    image, shape = s.args
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    expected = torch.nn.functional.interpolate(image, size=shape, mode=mode, align_corners=False)
    torch.testing.assert_close(ops.resize(image, shape), expected)


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_adjoint(s: Sample, instruction_set: str) -> None:
    image, shape = s.args
    grad = torch.randn(*image.shape[:2], *shape, dtype=torch.float64)
    pulled = ops.resize_adjoint(grad, image.shape[2:])
    torch.testing.assert_close((pulled * image).sum(), (grad * ops.resize(image, shape)).sum())


@pytest.mark.parametrize("function", [ops.resize, ops.resize_adjoint])
@pytest.mark.parametrize("s", [SAMPLES[0], SAMPLES[2], SAMPLES[3]], ids=str)
def test_passes_torchs_checks(function: Any, s: Sample) -> None:
    image, shape = s.args
    assert torch.autograd.gradcheck(lambda i: function(i, shape), image, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda i: function(i, shape), image, fast_mode=True)
    torch.library.opcheck(getattr(torch.ops.deqreg, function.__name__), (image, list(shape)))
    assert_compiles_and_exports(lambda i: function(i, shape), Sample(s.name, (image,)))


def test_same_bits_at_any_thread_count(threads: None) -> None:
    image = torch.randn(2, 3, 17, 20, 50)

    def call() -> tuple[Tensor, Tensor]:
        larger = ops.resize(image, (34, 40, 99))
        return larger, ops.resize_adjoint(larger, (17, 20, 50))

    assert_same_bits(call)


def test_non_contiguous_and_empty() -> None:
    image = torch.randn(2, 7, 6, 5).movedim(1, -1)
    assert torch.equal(ops.resize(image, (12, 9, 3)[: image.ndim - 2]), ops.resize(image.contiguous(), (12, 9)))
    assert ops.resize(torch.zeros(0, 3, 4, 5), (8, 8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("image", "shape", "message"),
    [
        (torch.zeros(4, 4), (2, 2), r"image must be \[N, C, H, W\] or \[N, C, D, H, W\], got \[4, 4\]"),
        (torch.zeros(1, 1, 0, 4), (2, 2), r"image must have at least one voxel along every axis, got \[1, 1, 0, 4\]"),
        (torch.zeros(1, 1, 4, 4), (2, 0), r"shape must be 2 positive sizes, got \[2, 0\]"),
        (torch.zeros(1, 1, 4, 4), (2, 2, 2), r"shape must be 2 positive sizes, got \[2, 2, 2\]"),
    ],
)
def test_errors_state_the_contract(image: torch.Tensor, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.resize(image, shape)


@pytest.mark.cuda
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_cuda_matches_reference(s: Sample) -> None:
    assert_matches_reference(ops.resize, reference.resize, s.to(device="cuda"), 1e-12)
