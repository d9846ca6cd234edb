from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.spatial import match_contrast


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_least_squares_curve_through_the_knots() -> None:
    seen, noise = image(40, 50), image(40, 50, seed=1)
    reference = (seen - 0.4).abs() + 0.3 * noise
    knots = np.linspace(0, 1, 24)
    hats = np.stack([np.interp(seen.flatten().numpy(), knots, row) for row in np.eye(24)], axis=1)
    values = np.linalg.lstsq(hats, reference.flatten().numpy(), rcond=None)[0]
    # a little smoother than that: what it bends less is far below the noise's 0.1
    expected = torch.from_numpy(hats @ values).view_as(seen)
    assert (match_contrast(seen, seen, reference) - expected).square().mean().sqrt() < 0.01


def test_it_undoes_a_contrast_that_is_no_line_and_changes_other_places_alike() -> None:
    def other(part: Tensor) -> Tensor:
        return 0.9 - (part - 0.3).abs()

    seen, elsewhere = image(20, 18, 16), image(9, 30, 12, seed=1)
    found = match_contrast(elsewhere, seen, other(seen))
    assert found.shape == elsewhere.shape
    # the kink lies between two knots
    assert (found - other(elsewhere)).abs().max() < 0.03
    assert (found - other(elsewhere)).abs().mean() < 0.002


def test_what_does_not_belong_together_becomes_flat() -> None:
    found = match_contrast(image(60, 50), image(60, 50), image(60, 50, seed=1))
    assert found.std() < 0.15 * image(60, 50).std()


def test_intensities_that_were_not_seen_follow_their_neighbours() -> None:
    seen = 0.3 + 0.4 * image(30, 30)
    found = match_contrast(torch.tensor([[[0.0, 1.0]]]).double()[None], seen, 1 - 0.5 * seen)
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 0.5]).double(), atol=1e-3, rtol=0)


def test_samples_are_apart_and_the_type_stays() -> None:
    seen = torch.cat([image(12, 12), image(12, 12)]).float()
    reference = torch.cat([seen[:1], 1 - seen[1:]])
    found = match_contrast(seen, seen, reference)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference, atol=1e-4, rtol=0)


def test_an_image_of_one_value_takes_the_mean() -> None:
    flat, reference = torch.ones(1, 1, 8, 8), image(8, 8).float()
    torch.testing.assert_close(match_contrast(flat, flat, reference), reference.mean().expand_as(flat))


def test_it_refuses_shapes_that_do_not_meet() -> None:
    with pytest.raises(ValueError, match=r"seen and reference must be \[N, 1, \*S\] of one shape"):
        match_contrast(image(4, 4), image(4, 4), image(4, 5))
    with pytest.raises(ValueError, match=r"got \[1, 2, 4, 4\], "):
        match_contrast(image(4, 4), ops.gaussian(image(4, 4), 0.5).repeat(1, 2, 1, 1), image(4, 4).repeat(1, 2, 1, 1))
