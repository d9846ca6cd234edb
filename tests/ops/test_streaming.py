"""Outputs that no cache holds are stored past the caches (csrc/cpu/streaming.h): from 32 MiB on."""

import pytest
import torch

from deqreg import ops

# voxels along the fastest axis: rows that begin at vectors, and rows that mostly don't
ROWS = (64, 75)


def samples_that_fit(sample: torch.Tensor) -> int:
    return 2 + (32 << 20) // sample.nbytes


def fields(channels: int, row: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, channels, 40, 33, row), 3 * torch.rand(batch, 3, 40, 33, row)


@pytest.mark.parametrize("row", ROWS)
def test_warp_of_many_channels(row: int, instruction_set: str) -> None:
    image, displacement = fields(16, row, samples_that_fit(fields(16, row, 1)[0]))
    parts = [ops.warp(i[None], u[None]) for i, u in zip(image, displacement, strict=True)]
    assert torch.equal(ops.warp(image, displacement), torch.cat(parts))


@pytest.mark.parametrize("row", ROWS)
def test_gradient_of_a_warp_by_its_positions(row: int, instruction_set: str) -> None:
    image, displacement = fields(1, row, samples_that_fit(fields(1, row, 1)[1]))
    values = torch.randn_like(image)
    parts = [ops.warp_gradient(*(t[None] for t in s)) for s in zip(image, displacement, values, strict=True)]
    assert torch.equal(ops.warp_gradient(image, displacement, values), torch.cat(parts))


@pytest.mark.parametrize("row", ROWS)
def test_correlation(row: int, instruction_set: str) -> None:
    batch = samples_that_fit(torch.empty(27, 40, 33, row))
    fixed, moving = torch.randn(2, batch, 3, 40, 33, row)
    parts = [ops.correlation(f[None], m[None], radius=1) for f, m in zip(fixed, moving, strict=True)]
    assert torch.equal(ops.correlation(fixed, moving, radius=1), torch.cat(parts))
