from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.spatial import resize, self_similarity


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(image: Tensor) -> Tensor:
    """The formula with one shifted copy of the whole image a neighbour, all pairs at once."""
    dims = image.ndim - 2
    axes = [torch.arange(n) for n in image.shape[2:]]

    def at(shift: tuple[int, ...]) -> Tensor:
        index = [(axis + s).clamp(0, len(axis) - 1) for axis, s in zip(axes, shift, strict=True)]
        return image[(slice(None), slice(None), *torch.meshgrid(*index, indexing="ij"))]

    shifts = [s for s in product((-1, 0, 1), repeat=dims) if sum(map(abs, s)) == 1]
    diagonal = [(a, b) for a, b in combinations(shifts, 2) if sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) == 2]
    distance = torch.cat([ops.gaussian((at(a) - at(b)) ** 2, 0.8) for a, b in diagonal], dim=1)
    distance = distance - distance.amin(1, keepdim=True)
    variance = distance.mean(1, keepdim=True)
    return torch.exp(-distance / torch.maximum(variance, 0.01 * variance.mean(tuple(range(1, dims + 2)), keepdim=True)))


@pytest.mark.parametrize("shape", [(9, 12), (7, 8, 6)])
def test_it_is_the_formula(shape: tuple[int, ...]) -> None:
    found, expected = self_similarity(image(*shape)), written_out(image(*shape))
    assert found.shape == (2, 2 * len(shape) * (len(shape) - 1), *shape)
    # the order of the pairs is not promised
    torch.testing.assert_close(found.sort(dim=1).values, expected.sort(dim=1).values, rtol=1e-9, atol=1e-12)


def test_contrast_gain_and_sign_do_not_matter_but_structure_does() -> None:
    one = self_similarity(image(12, 10, 8))
    torch.testing.assert_close(self_similarity(5 - 3 * image(12, 10, 8)), one)
    assert (self_similarity(image(12, 10, 8, seed=1)) - one).abs().mean() > 0.1


def test_it_moves_with_the_image() -> None:
    u = torch.zeros(2, 2, 20, 18, dtype=torch.float64)
    u[:, 0], u[:, 1] = 2.0, -3.0
    moved = self_similarity(ops.warp(image(20, 18), u))
    inner = (..., slice(6, -6), slice(6, -6))
    # but for the least variance, a mean over the image that the shift changes at the faces
    torch.testing.assert_close(moved[inner], ops.warp(self_similarity(image(20, 18)), u)[inner], atol=1e-6, rtol=0)


def test_on_another_grid_it_is_resized() -> None:
    expected = resize(self_similarity(image(12, 10, 8)), (6, 5, 8))
    torch.testing.assert_close(self_similarity(image(12, 10, 8), (6, 5, 8)), expected)


def test_a_flat_image_describes_nothing() -> None:
    assert self_similarity(torch.full((1, 1, 6, 5), 0.3)).unique().tolist() == [1.0]


@pytest.mark.parametrize("shape", [(1, 2, 6, 6), (1, 1, 6), (1, 1, 4, 4, 4, 4)])
def test_it_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image must be \[N, 1, \*S\] of 2 or 3 axes, got \["):
        self_similarity(torch.zeros(shape))
