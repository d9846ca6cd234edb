from __future__ import annotations

import pytest
import torch

from deqreg import ops
from deqreg.ops import reference
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def sample(name: str, shape: tuple[int, ...], sigma: float | list[float]) -> Sample:
    generator = torch.Generator().manual_seed(len(name))
    image = torch.randn(2, 3, *shape, dtype=torch.float64, generator=generator, requires_grad=True)
    return Sample(name, (image, sigma))


SAMPLES = [
    sample("2-D", (7, 9), 1.0),
    sample("3-D", (5, 6, 7), 0.8),
    sample("an axis each", (8, 9, 7), [2.0, 0.0, 0.4]),
    sample("wider than the image", (3, 1, 2), 4.0),
    sample("nothing", (4, 5, 6), 0.0),
    sample("several strips of rows", (3, 90, 300), [0.5, 1.0, 2.0]),
]


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(ops.gaussian, reference.gaussian, s, 1e-12)


@pytest.mark.parametrize("s", SAMPLES[:2], ids=str)
def test_passes_torchs_checks(s: Sample) -> None:
    image, sigma = s.args
    assert torch.autograd.gradcheck(lambda i: ops.gaussian(i, sigma), image)
    assert torch.autograd.gradgradcheck(lambda i: ops.gaussian(i, sigma), image)
    torch.library.opcheck(torch.ops.deqreg.gaussian, (image, [sigma] * (image.ndim - 2)))
    assert_compiles_and_exports(lambda i: ops.gaussian(i, sigma), Sample(s.name, (image,)))


def test_keeps_constants_and_totals() -> None:
    image = torch.rand(1, 1, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(ops.gaussian(torch.full_like(image, 3.0), 2.5), torch.full_like(image, 3.0))
    torch.testing.assert_close(ops.gaussian(image, 2.5).sum(), image.sum())


def test_same_bits_at_any_thread_count(threads: None) -> None:
    image, wide = torch.randn(2, 3, 37, 20, 50), torch.randn(1, 1, 40, 90, 300)  # of one strip and of several
    assert_same_bits(lambda: (ops.gaussian(image, 1.5), ops.gaussian(wide, 2.5)))


@pytest.mark.parametrize("sigma", [-1.0, [1.0, 1.0], 30.0, float("nan")])
def test_errors_state_the_contract(sigma: float | list[float]) -> None:
    with pytest.raises(ValueError, match="sigma must be one number or 3, each in"):
        ops.gaussian(torch.zeros(1, 1, 4, 4, 4), sigma)


@pytest.mark.cuda
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_cuda_matches_reference(s: Sample) -> None:
    assert_matches_reference(ops.gaussian, reference.gaussian, s.to(device="cuda"), 1e-12)
