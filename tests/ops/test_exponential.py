from __future__ import annotations

import pytest
import torch

from deqreg import ops
from deqreg.ops import reference
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def sample(name: str, shape: tuple[int, ...], *steps: int) -> Sample:
    generator = torch.Generator().manual_seed(len(name))
    velocity = torch.randn(2, len(shape), *shape, dtype=torch.float64, generator=generator) * 2
    return Sample(name, (velocity.requires_grad_(), *steps))


SAMPLES = [sample("2-D", (7, 5)), sample("3-D", (5, 6, 7)), sample("even", (5, 6, 7), 4), sample("none", (5, 6), 0)]


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(ops.exponential, reference.exponential, s, 1e-11)


@pytest.mark.parametrize("s", SAMPLES[:2], ids=str)
def test_passes_torchs_checks(s: Sample) -> None:
    assert torch.autograd.gradcheck(ops.exponential, s.args)
    torch.library.opcheck(torch.ops.deqreg.exponential, (*s.args, 5))
    assert_compiles_and_exports(ops.exponential, s)


def test_opposite_velocities_undo_each_other() -> None:
    # linear interpolation leaves about h^2 |v''| / 8 a composition: hundredths of a voxel for fields this curved
    v = ops.gaussian(torch.randn(1, 3, 32, 32, 32) * 40, 4.0)
    assert v.abs().max() > 2  # an error of sign would leave voxels
    round_trip = ops.compose(ops.exponential(v), ops.exponential(-v))
    assert round_trip[..., 6:-6, 6:-6, 6:-6].abs().max() < 0.05


def test_same_bits_at_any_thread_count(threads: None) -> None:
    velocity = torch.randn(2, 3, 33, 40, 50)
    assert_same_bits(lambda: [ops.exponential(velocity)])


def test_errors_state_the_contract() -> None:
    with pytest.raises(ValueError, match="steps must be in 0"):
        ops.exponential(torch.zeros(1, 2, 4, 4), -1)
    with pytest.raises(ValueError, match=r"velocity must be torch\.float32, got torch\.float16"):
        ops.exponential(torch.zeros(1, 2, 4, 4).half())


@pytest.mark.cuda
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_cuda_matches_reference(s: Sample) -> None:
    assert_matches_reference(ops.exponential, reference.exponential, s.to(device="cuda"), 1e-11)
