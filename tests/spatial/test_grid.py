from __future__ import annotations

import pytest
import torch

from deqreg.spatial import Grid, level_shape


def oblique(shape: tuple[int, ...] = (10, 12, 14)) -> Grid:
    turn = torch.linalg.matrix_exp(torch.tensor([[0, 0.2, 0.1], [-0.2, 0, 0.3], [-0.1, -0.3, 0]], dtype=torch.float64))
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn @ torch.diag(torch.tensor([-1.0, 2.0, 3.5], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([30.0, -50.0, 1200.0])
    return Grid(shape, affine)


def corners(grid: Grid) -> torch.Tensor:
    """World positions of two opposite outer corners of the grid's box."""
    size = torch.tensor(grid.shape, dtype=torch.float64)
    return grid.to_world(torch.stack([torch.full_like(size, -0.5), size - 0.5]))


def test_spacing_and_centre_are_the_worlds() -> None:
    grid = oblique()
    assert grid.spacing == pytest.approx((1.0, 2.0, 3.5))
    torch.testing.assert_close(grid.centre, corners(grid).mean(0))


def test_points_go_to_voxels_and_back() -> None:
    points = torch.randn(20, 3, dtype=torch.float64) * 100
    torch.testing.assert_close(oblique().to_world(oblique().to_voxels(points)), points)


def test_resized_and_cropped_grids_stay_in_place() -> None:
    grid = oblique()
    torch.testing.assert_close(corners(grid.resized((5, 7, 20))), corners(grid))
    inner = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        grid.cropped((-1, -2, -3), (9, 9, 9)).to_world(inner + torch.tensor([1.0, 2.0, 3.0])), grid.to_world(inner)
    )


def test_map_to_agrees_with_going_through_the_world() -> None:
    grid, other = oblique(), Grid((8, 8, 8), torch.diag(torch.tensor([2.0, 2.0, -2.0, 1.0], dtype=torch.float64)))
    world = torch.eye(4, dtype=torch.float64)
    world[:3, 3] = torch.tensor([5.0, -3.0, 2.0])
    voxels = torch.rand(10, 3, dtype=torch.float64) * 8
    mapping = grid.map_to(other, world)
    expected = other.to_voxels(grid.to_world(voxels) + world[:3, 3])
    torch.testing.assert_close(voxels @ mapping[:, :3].T + mapping[:, 3], expected)


def test_thick_slices_are_kept_until_the_others_catch_up() -> None:
    grid = Grid((256, 256, 40), torch.diag(torch.tensor([1.0, 1.0, 5.0, 1.0], dtype=torch.float64)))
    assert level_shape(grid, 4.0) == (64, 64, 40)
    assert level_shape(grid, 10.0) == (26, 26, 20)


def test_levels_end_at_the_grid_and_never_vanish() -> None:
    grid = oblique((10, 12, 200))
    shapes = [level_shape(grid, min(grid.spacing) * factor) for factor in (8, 4, 1)]
    assert shapes[-1] == (10, 12, 200)
    assert min(min(shape) for shape in shapes) >= 10


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (torch.eye(3, dtype=torch.float64), r"affine must be \[4, 4\] float64"),
        (torch.eye(4), r"got \[4, 4\] torch.float32"),
        (torch.zeros(4, 4, dtype=torch.float64), "invertible"),
    ],
)
def test_errors_state_the_contract(affine: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid((4, 4, 4), affine)


@pytest.mark.parametrize("edge", [1e-5, 1.0, 1e5])
def test_voxels_of_any_size_are_a_grid_and_flat_ones_are_not(edge: float) -> None:
    affine = torch.diag(torch.tensor([edge, edge, edge, 1.0], dtype=torch.float64))
    assert Grid((4, 5, 6), affine).spacing == pytest.approx((edge,) * 3)
    affine[:3, 2] = affine[:3, 1]
    with pytest.raises(ValueError, match="affine must be invertible"):
        Grid((4, 5, 6), affine)
