from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deqreg import io, ops
from deqreg.io import DisplacementField
from deqreg.spatial import Grid, sample
from deqreg.transforms import grid_of, invert, join, move_points, split
from tests.spatial.test_affine import known
from tests.spatial.test_grid import oblique

KNOWN_FIELD = Path(__file__).parent.parent / "examples" / "data" / "known_field"


def world_points(grid: Grid) -> Tensor:
    return grid.to_world(torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in grid.shape]))


def as_field(matrix: Tensor, grid: Grid) -> DisplacementField:
    """An affine map as a displacement on a grid."""
    points = world_points(grid)
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    return DisplacementField((moved - points).T.reshape(3, *grid.shape).float(), grid.affine.numpy())


@pytest.fixture
def turned() -> Tensor:
    """A map that turns by more than a right angle about a point of the grid: its displacement is no contraction."""
    generator = torch.zeros(3, 3, dtype=torch.float64)
    generator[0, 1], generator[1, 0], generator[2, 2] = 2.0, -2.0, 0.2
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3] = torch.linalg.matrix_exp(generator)
    centre = oblique().centre
    world[:3, 3] = centre - world[:3, :3] @ centre + torch.tensor([20.0, -5.0, 3.0], dtype=torch.float64)
    return world


def test_affine_maps_are_inverted_exactly_on_any_grid(turned: Tensor) -> None:
    onto = Grid((9, 7, 8), turned @ oblique((9, 7, 8)).affine @ torch.diag(torch.tensor([1.5, 2.0, 0.5, 1.0])).double())
    found = DisplacementField(invert(as_field(turned, oblique()), onto), onto.affine.numpy())
    expected = as_field(torch.linalg.inv(turned), onto)
    # the displacement of the fixed grid, metres from the origin, is float32 millimetres
    torch.testing.assert_close(found.displacement, expected.displacement, atol=2e-3, rtol=0)


def test_split_and_join_are_each_others_inverse(turned: Tensor) -> None:
    grid = oblique((20, 18, 16))
    bent = as_field(turned, grid).displacement + 2 * ops.gaussian(torch.randn(1, 3, *grid.shape), 3.0)[0]
    world, rest = split(bent, grid)
    assert (rest.abs() < 2).all()  # the turn, of up to 60 mm, is in the affine part
    torch.testing.assert_close(join(rest, grid, world), bent, atol=1e-3, rtol=0)


def test_points_move_as_the_field_says_and_back(turned: Tensor) -> None:
    grid = oblique((20, 18, 16))
    bent = as_field(turned, grid).displacement + 2 * ops.gaussian(torch.randn(1, 3, *grid.shape), 3.0)[0]
    field = DisplacementField(bent, grid.affine.numpy())
    points = world_points(grid)[::97]
    there = move_points(field, points)
    torch.testing.assert_close(there, points + bent.flatten(1).T[::97].double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(move_points(field, there, inverse=True), points, atol=0.01, rtol=0)
    matrix = turned.numpy()
    torch.testing.assert_close(move_points(matrix, move_points(matrix, points), inverse=True), points)


def test_a_brains_field_composed_with_its_inverse_is_the_identity() -> None:
    field = io.read_displacement(KNOWN_FIELD / "true_displacement.nii.gz")
    onto = grid_of(field).resized((70, 130, 64))  # the moving image could have any voxels
    inverse = invert(field, onto)
    moving = world_points(onto)
    fixed = moving + inverse.flatten(1).T.double()
    grid = grid_of(field)
    voxels = grid.to_voxels(fixed)
    inside = ((voxels >= 0) & (voxels <= torch.tensor(grid.shape) - 1)).all(1)
    error = (fixed + sample(field.displacement[None].double(), voxels[None])[0] - moving).norm(dim=1)[inside]
    assert inside.double().mean() > 0.9
    assert error.max() < 0.01  # the solver stops at 1e-4 voxels, root mean square
    # the other way about the inverse is interpolated between voxels of up to 3 mm, which costs what it bends in them
    there = move_points(field, world_points(grid)[::101])
    back = move_points(DisplacementField(inverse, onto.affine.numpy()), there)
    assert (back - world_points(grid)[::101]).norm(dim=1).mean() < 0.1


def test_two_dimensions() -> None:
    field = DisplacementField(ops.gaussian(torch.randn(1, 2, 40, 30), 3.0)[0] * 4, np.diag([2.0, 0.5, 1.0, 1.0]))
    points = world_points(grid_of(field))[300:900]
    back = move_points(field, move_points(field, points), inverse=True)
    torch.testing.assert_close(back, points, atol=2e-3, rtol=0)
    assert invert(field, grid_of(field).resized((20, 25))).shape == (2, 20, 25)


def test_errors_state_the_contract() -> None:
    field = DisplacementField(torch.zeros(2, 8, 8), np.eye(4))
    with pytest.raises(ValueError, match="grid of the inverse must be 2-D as the transform, got 3-D"):
        invert(field, oblique())
    with pytest.raises(ValueError, match=r"points must be \[P, 2\] for this transform, got \[1, 3\]"):
        move_points(field, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="must be invertible, got determinant 0"):
        move_points(known(3).numpy() * 0, torch.zeros(1, 3), inverse=True)


def test_a_transform_that_folds_is_inverted_with_a_warning() -> None:
    u = ops.gaussian(torch.randn(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(0)), 2.0)
    folded = DisplacementField((u * (12 / u.abs().max()))[0], np.eye(4))
    with pytest.warns(UserWarning, match="where a transform folds it has none"):
        invert(folded, grid_of(folded))
