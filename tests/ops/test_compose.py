from __future__ import annotations

import pytest
import torch

from deqreg import ops
from deqreg.ops import reference
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def sample(name: str, outer: tuple[int, ...], inner: tuple[int, ...]) -> Sample:
    generator = torch.Generator().manual_seed(len(name))
    fields = [torch.randn(2, len(s), *s, dtype=torch.float64, generator=generator) * 2 for s in (outer, inner)]
    return Sample(name, tuple(f.requires_grad_() for f in fields))


SAMPLES = [
    sample("2-D", (7, 5), (7, 5)),
    sample("3-D", (5, 6, 7), (5, 6, 7)),
    sample("of other size", (5, 1, 7), (3, 4, 150)),
]


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(ops.compose, reference.compose, s, 1e-12)


@pytest.mark.parametrize("s", SAMPLES[:2], ids=str)
def test_passes_torchs_checks(s: Sample) -> None:
    assert torch.autograd.gradcheck(ops.compose, s.args)
    torch.library.opcheck(torch.ops.deqreg.compose, s.args)
    assert_compiles_and_exports(ops.compose, s)


def test_field_with_itself_counts_both_places() -> None:
    u = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: ops.compose(v, v), u)


def test_same_bits_at_any_thread_count(threads: None) -> None:
    outer, inner = torch.randn(2, 3, 20, 30, 40), torch.randn(2, 3, 33, 40, 50) * 4
    assert_same_bits(lambda: [ops.compose(outer, inner)])


def test_second_derivative_raises() -> None:
    a, b = SAMPLES[0].args
    (first,) = torch.autograd.grad(ops.compose(a, b).square().sum(), b, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


def test_errors_state_the_contract() -> None:
    with pytest.raises(ValueError, match=r"inner must be \[1, 2, H, W\], got \[1, 3, 4, 4, 4\]"):
        ops.compose(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(ValueError, match=r"outer must be \[N, 2, H, W\], got \[1, 3, 4, 4\]"):
        ops.compose(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4))


@pytest.mark.cuda
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_cuda_matches_reference(s: Sample) -> None:
    assert_matches_reference(ops.compose, reference.compose, s.to(device="cuda"), 1e-12)
