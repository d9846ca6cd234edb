from __future__ import annotations

import numpy as np
import pytest
import torch

from deqreg.spatial import background, scale_intensities
from deqreg.spatial.intensity import thinned


def head(size: int = 40) -> torch.Tensor:
    """A ball of 3 to 9 in nothing."""
    axis = torch.linspace(-1, 1, size)
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    return torch.where(distance < 0.6, 9 - 10 * distance, 0.0)


def test_few_negative_voxels_do_not_become_the_background() -> None:
    plain = head()
    ringing = plain.clone()
    ringing[5, 5, :10] = -0.3  # as splines leave around a head that was cut out
    assert background(plain) == background(ringing) == 0
    torch.testing.assert_close(scale_intensities(ringing), scale_intensities(plain))


@pytest.mark.parametrize(
    "image",
    [torch.rand(20, 20, 20) - 5, -head(), torch.full((9, 9), 2.0), torch.where(torch.rand(30, 30) > 0.4, 1.0, -1.0)],
    ids=["no background", "on white", "constant", "as much below as above"],
)
def test_where_nothing_was_cut_out_the_lowest_value_is_the_background(image: torch.Tensor) -> None:
    assert background(image) == float(image.min())


def test_the_range_is_that_of_all_slices() -> None:
    # as many voxels as make the step between those that are looked at the number of slices
    image = torch.linspace(100, 1000, 1024 * 1024).view(1024, 1024, 1).repeat(1, 1, 8)
    image[..., 0] = 50
    scaled = scale_intensities(image)
    assert float((scaled[..., 1:] == 1).float().mean()) < 0.01
    assert 0.4 < float(scaled[512, 512, 4]) < 0.6


@pytest.mark.parametrize("row", [1, 2, 20, 23, 210])
def test_values_of_every_slice_are_looked_at(row: int) -> None:
    planes = np.broadcast_to(np.arange(row), (21_000_000 // row, row))
    found = thinned(planes, row)
    assert 0.5e6 < found.size < 2e6
    assert np.bincount(found, minlength=row).min() > 0.9 * found.size / row
