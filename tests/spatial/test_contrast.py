from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deqreg
from deqreg import ops
from deqreg.spatial import Grid, Image, contrast_is_reversed, match_contrast
from tests.nets.test_variational import bump, texture

EYE = torch.eye(4, dtype=torch.float64)
SHAPE = (32, 30, 36)


def head(data: Tensor) -> Tensor:
    """The image in an empty box."""
    inside = bump(*SHAPE, height=1.0)[:, :1] > 0.1
    return torch.where(inside, data, torch.zeros_like(data))


def other_contrast(data: Tensor) -> Tensor:
    """Brightest in the middle of the range: no line takes it back."""
    return 0.2 + 10 * (data - data.mean()).square()


def image(data: Tensor) -> Image:
    return Image(data, Grid(tuple(data.shape[2:]), EYE))


def test_a_contrast_that_is_no_line_of_the_other_is_brought_back() -> None:
    data = 0.2 + 0.8 * texture(*SHAPE)
    fixed, moving = head(other_contrast(data)), head(data)
    matched = match_contrast(image(fixed), image(moving), EYE).data
    inside = moving > 0

    def alike(found: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([found[inside], fixed[inside]]))[0, 1])

    assert alike(moving) < 0.9
    assert alike(matched) > 0.97
    assert torch.equal(matched > 0, (matched > 0) & inside)


def test_reversed_means_negatively_correlated_where_both_show_something() -> None:
    data = 0.2 + 0.6 * texture(*SHAPE)
    assert contrast_is_reversed(image(head(1 - data)), image(head(data)), EYE)
    assert not contrast_is_reversed(image(head(0.5 * data)), image(head(data)), EYE)
    far = EYE.clone()
    far[0, 3] = 500.0
    assert not contrast_is_reversed(image(head(data)), image(head(data)), far)
    assert match_contrast(image(head(data)), image(head(data)), far).data.equal(head(data))


def test_outside_of_the_masks_nothing_counts() -> None:
    data = 0.2 + 0.6 * texture(*SHAPE)
    inside = (bump(*SHAPE, height=1.0)[:, :1] > 0.3).float()
    misleading = torch.where(inside > 0, 1 - data, data)
    grid = Grid(SHAPE, EYE)
    assert contrast_is_reversed(Image(misleading, grid, inside), Image(data, grid, inside), EYE)


@pytest.mark.parametrize(("contrast", "used"), [("auto", "other"), ("same", "same")])
def test_register_brings_the_contrast_over_where_it_is_reversed(contrast: str, used: str) -> None:
    moving, truth = texture(*SHAPE), bump(*SHAPE, height=2.0)
    fixed = head(1 - ops.warp(moving, truth))[0, 0]
    done = deqreg.register(fixed, head(moving)[0, 0], initial="identity", contrast=contrast)
    assert done.settings["contrast"] == used


def test_errors_state_the_contract() -> None:
    with pytest.raises(ValueError, match="contrast must be one of auto, same, other, got 't2'"):
        deqreg.register(torch.rand(8, 8), torch.rand(8, 8), contrast="t2")
