from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.spatial import AffineStage, Grid, Image, align, resample

STAGES = [AffineStage(4.0, "rigid"), AffineStage(4.0, "affine"), AffineStage(2.0, "affine")]


def blobs(grid: Grid, seed: int = 0) -> Tensor:
    """A smooth random object that fades out towards the faces."""
    noise = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(seed))
    window = torch.ones(1, 1, *grid.shape)
    for axis, size in enumerate(grid.shape):
        ramp = torch.hann_window(size, periodic=False)
        window = window * ramp.view(1, 1, *[-1 if a == axis else 1 for a in range(grid.dims)])
    image = ops.gaussian(noise, 2.0) * window
    return image / image.max()


def known(dims: int) -> Tensor:
    """A world map with a turn, a strain and a shift of centimetres."""
    world = torch.eye(dims + 1, dtype=torch.float64)
    world[0, 1], world[1, 0], world[0, 0] = 0.12, -0.1, 1.05
    world[:dims, dims] = torch.tensor([40.0, -25.0, 60.0][:dims])
    return world


@pytest.mark.parametrize("shape", [(64, 60), (36, 40, 32)])
def test_finds_a_known_map(shape: tuple[int, ...]) -> None:
    dims = len(shape)
    spacing = torch.diag(torch.tensor([2.0] * dims + [1.0], dtype=torch.float64))
    fixed_grid, world = Grid(shape, spacing), known(dims)
    moving_grid = Grid(
        shape, world @ spacing
    )  # the moving scan lies where the map takes the fixed one, and reaches past
    moving_grid = moving_grid.cropped([-4] * dims, [n + 8 for n in shape])
    image = blobs(fixed_grid)
    moving = Image(resample(image, fixed_grid, moving_grid, torch.linalg.inv(world), padding="zeros"), moving_grid)
    found = align(Image(image, fixed_grid), moving, STAGES)
    corners = fixed_grid.to_world(torch.tensor([[0.0] * dims, [n - 1.0 for n in shape]]))
    error = (corners - fixed_grid.centre) / 2 + fixed_grid.centre  # half way out, where the object is
    apart = (error @ (found - world)[:dims, :dims].T + (found - world)[:dims, dims]).norm(dim=1)
    assert apart.max() < 1.0  # half a voxel


def test_equal_images_stay() -> None:
    grid = Grid((30, 30, 30), torch.eye(4, dtype=torch.float64))
    image = Image(blobs(grid), grid)
    assert (align(image, image, STAGES) - torch.eye(4)).abs().max() < 1e-6


def test_masks_say_where_to_look() -> None:
    grid = Grid((64, 60), torch.eye(3, dtype=torch.float64))
    image, other = blobs(grid), blobs(grid, seed=1)
    moved = torch.where(torch.arange(60) < 30, image.roll(2, 2), other)  # the right half is another object
    mask = (torch.arange(60) < 30).float().expand(1, 1, 64, 60)
    found = align(Image(image, grid, mask), Image(moved, grid, mask), [AffineStage(1.0, "translation")])
    torch.testing.assert_close(found[:2, 2], torch.tensor([2.0, 0.0], dtype=torch.float64), atol=0.3, rtol=0)


def test_errors_state_the_contract() -> None:
    grids = [Grid(shape, torch.eye(len(shape) + 1, dtype=torch.float64)) for shape in ((16, 16), (16, 16, 16))]
    images = [Image(blobs(grid), grid) for grid in grids]
    with pytest.raises(ValueError, match="moving must be 2-D like fixed, got 3-D"):
        align(*images, STAGES)
    with pytest.raises(ValueError, match="at least one AffineStage"):
        align(images[0], images[0], [])
    with pytest.raises(ValueError, match="degrees must be 'translation', 'rigid' or 'affine', got 'similarity'"):
        AffineStage(4.0, "similarity")
