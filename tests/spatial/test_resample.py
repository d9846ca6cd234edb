from __future__ import annotations

import pytest
import torch

from deqreg import ops
from deqreg.spatial import Grid, resample, resize, resize_displacement, resize_mask, sample, scatter
from tests.spatial.test_grid import oblique


def ramp(grid: Grid, direction: torch.Tensor) -> torch.Tensor:
    """An image whose value is a linear function of the world: resampling must reproduce it exactly."""
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in grid.shape], indexing="ij")
    world = grid.to_world(torch.stack(axes, -1).reshape(-1, grid.dims))
    return (world @ direction).view(1, 1, *grid.shape)


def test_resize_keeps_the_world_in_place() -> None:
    direction = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    grid = oblique((32, 32, 32))
    smaller = grid.resized((16, 20, 32))
    error = resize(ramp(grid, direction), smaller.shape) - ramp(smaller, direction)
    # mirrored faces bend a ramp within the smoothing's reach of them; the middle is exact
    assert error[..., 4:-4, 4:-4, 4:-4].abs().max() < 1e-9


def test_resample_follows_the_world_map() -> None:
    direction = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    grid, onto = oblique((32, 32, 32)), oblique((32, 32, 32)).resized((20, 24, 28))
    world = torch.eye(4, dtype=torch.float64)
    world[:3, 3] = torch.tensor([1.0, 2.0, -3.0])
    moved = resample(ramp(grid, direction), grid, onto, world)
    expected = ramp(onto, direction) + world[:3, 3] @ direction
    assert (moved - expected)[..., 6:-6, 6:-6, 6:-6].abs().max() < 1e-9


def test_resized_displacement_is_the_same_map() -> None:
    grid, u = Grid((16, 12), torch.eye(3, dtype=torch.float64)), torch.zeros(1, 2, 16, 12, dtype=torch.float64)
    u[:, 0], u[:, 1] = 2.0, -1.0
    finer = resize_displacement(u, (32, 36))
    assert finer[:, 0].unique().tolist() == [4.0]
    torch.testing.assert_close(finer[:, 1].unique(), torch.tensor([-3.0], dtype=torch.float64))
    assert resize_displacement(u, grid.shape) is u


def test_labels_are_picked_not_mixed() -> None:
    grid = oblique((8, 8, 8))
    labels = torch.randint(0, 5, (1, 1, 8, 8, 8)).float() * 10
    out = resample(labels, grid, grid.resized((5, 6, 7)), interpolation="nearest")
    assert set(out.unique().tolist()) <= set(labels.unique().tolist())
    assert torch.equal(resample(labels, grid, grid, interpolation="nearest"), labels)
    torch.testing.assert_close(ops.warp(labels, torch.zeros(1, 3, 8, 8, 8)), labels, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(7, 9), (5, 6, 7)])
def test_scatter_is_the_adjoint_of_sample(shape: tuple[int, ...]) -> None:
    dims = len(shape)
    field = torch.randn(2, dims, *shape, dtype=torch.float64)
    points = torch.rand(2, 11, dims, dtype=torch.float64) * (min(shape) + 2) - 1  # some beyond the grid
    values = torch.randn(2, 11, dims, dtype=torch.float64)
    torch.testing.assert_close(
        (sample(field, points) * values).sum(), (scatter(values, points, shape) * field).sum(), rtol=1e-12, atol=1e-12
    )


def test_a_million_points_are_sampled_as_closely_as_a_few() -> None:
    """Linear interpolation of a ramp gives the points themselves, to float32's rounding of values up to 16."""
    ramp = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1, 16, 16).contiguous()
    points = 15 * torch.rand(1, 1_000_000, 2, generator=torch.Generator().manual_seed(0))
    # a thousand voxels a side: an index of 1000 leaves 6e-5 of float32
    assert (sample(ramp, points)[..., 0] - points[..., 0]).abs().max() < 2e-4


def test_on_its_own_voxels_an_image_is_what_it_was_and_elsewhere_it_is_not() -> None:
    grid = Grid((6, 7, 5), torch.diag(torch.tensor([2.0, 3.0, 1.5, 1.0], dtype=torch.float64)))
    image = torch.rand(1, 1, *grid.shape)
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = grid.affine[:3, 0]  # a voxel along the first axis
    assert resample(image, grid, grid) is image
    torch.testing.assert_close(resample(image, grid, grid, shift)[:, :, :-1], image[:, :, 1:])


def test_a_mask_thinner_than_coarse_voxels_is_not_lost() -> None:
    axis = torch.linspace(-1, 1, 64)
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)[None, None]
    shell = ((distance > 0.7) & (distance < 0.76)).float()  # two voxels thick
    coarse = resize_mask(shell, (8, 8, 8))
    where = resize(distance, (8, 8, 8))[coarse > 0]
    assert where.numel() > 50
    assert 0.5 < float(where.min()) < float(where.max()) < 1.0


def test_half_of_a_coarse_voxel_is_inside_of_a_mask() -> None:
    block = torch.zeros(1, 1, 32, 32)
    block[..., 8:24, 8:24] = 1
    assert resize_mask(block, (8, 8)).sum() == 16
