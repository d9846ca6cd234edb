"""The inverse of a displacement, which is a fixed point itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deqreg import ops
from deqreg.equilibrium import Anderson, Solution, fixed_point
from deqreg.ops import checks
from deqreg.spatial.resample import as_grid, resize_displacement

# Of the squared Jacobian determinant: where a map squeezes a voxel below a thirtieth of its volume, a step is less than
# half of Newton's. Without it single voxels of a field between two brains are thrown out of the image.
_DAMPING = 1e-3
# No step is longer, in voxels: the slope that it follows says nothing about what lies farther away.
_LONGEST_STEP = 2.0
# Picard's iteration runs away where a map stretches twofold, and Newton's where it starts too far off: half steps,
# accelerated, come near, and then a few along slopes that are looked up anew in each round. Voxels, root mean square:
# 1e-4 leaves the inverse of a brain's field within 0.01 voxels but at a dozen places, the farthest 0.03 off.
_TOL = 1e-4
_APPROACH = Anderson(memory=4, tol=_TOL, max_steps=8, damping=0.5, norm="rms", patience=None)
_ROUND = Anderson(memory=3, tol=_TOL, max_steps=4, norm="rms", patience=None)
_ROUNDS = 8
_COARSEST = 16  # voxels; below this a coarser grid saves nothing
_SLAB = 2**15  # voxels whose Jacobian is inverted at a time: the two dozen planes that takes stay in the cache


def invert(
    displacement: Tensor, shape: Sequence[int] | None = None, affine: Tensor | None = None, tol: float = _TOL
) -> Solution:
    """The displacement of the inverse map, on any grid: `v = -u o (id + v)`.

    It is solved as an equilibrium, of `v <- v - J^-1 (v + u o (id + v))` near the end, `J = I + du/dx`.

    Args:
        displacement: `u`, `[N, d, *S]`, in voxels; held constant beyond its grid.
        shape: voxels of the inverse's grid; those of `u` if not given.
        affine: `A`, `[d, d + 1]`, voxels of the inverse's grid to voxels of `u`; the identity if not given.
        tol: a step that is shorter, root mean square, in voxels of the inverse's grid, is the last.

    Returns:
        The `Solution` of the last round; its value is `v`, `[N, d, *shape]`, in voxels of the inverse's grid, as
        `deqreg.ops.warp` takes it beside `affine`: `y = A(x + v(x))` is where `y + u(y) = A x`. Where the map folds
        there is no inverse, and the value is as near as the steps came.

    Raises:
        ValueError: when a shape or dtype breaks this contract.

    Reference: Chen et al., A simple fixed-point approach to invert a deformation field, Medical Physics 35 (2008), 81.

    >>> import torch
    >>> shift = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    >>> invert(shift).value[0, :, 3, 3].tolist()
    [-2.0, 1.0]
    """
    displacement = checks.check_field("displacement", displacement)
    dims = displacement.shape[1]
    if affine is not None and affine.shape != (dims, dims + 1):
        raise ValueError(f"affine must be [{dims}, {dims + 1}] for this displacement, got {list(affine.shape)}")
    map_ = torch.eye(dims, dims + 1) if affine is None else affine
    size = tuple(displacement.shape[2:] if shape is None else shape)
    return _nested(displacement.contiguous(), size, map_.double().cpu(), tol)


def invert_points(displacement: Tensor, points: Tensor) -> Tensor:
    """Where points come from: `y` with `y + u(y) = x`.

    Args:
        displacement: `u`, `[N, d, *S]`, in voxels; held constant beyond its grid.
        points: `x`, `[N, P, d]`, in voxels.

    Returns:
        `y`, `[N, P, d]`, in the displacement's dtype.

    Raises:
        ValueError: when a shape or dtype breaks this contract.

    >>> import torch
    >>> shift = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    >>> invert_points(shift.double(), torch.tensor([[[3.0, 3.5]]])).tolist()
    [[[1.0, 4.5]]]
    """
    displacement = checks.check_field("displacement", displacement)
    dims = displacement.shape[1]
    if points.ndim != 3 or points.shape[2] != dims:
        raise ValueError(f"points must be [N, P, {dims}] for this displacement, got {list(points.shape)}")
    target, voxels = as_grid(points.to(displacement))
    found = _solve(displacement.contiguous(), target, torch.eye(dims, dims + 1), None).value
    assert isinstance(found, Tensor)
    return (found.flatten(2).mT + voxels)[:, : points.shape[1]]


def _nested(u: Tensor, shape: tuple[int, ...], affine: Tensor, tol: float) -> Solution:
    """The inverse on a grid, started from the one on half as many voxels an axis."""
    dims, start = len(shape), None
    coarse = tuple((n + 1) // 2 for n in shape)
    if min(coarse) >= _COARSEST:
        step = torch.tensor([fine / half for fine, half in zip(shape, coarse, strict=True)], dtype=torch.float64)
        to_fine = torch.eye(dims + 1, dtype=torch.float64)
        to_fine[:dims, :dims] = step.diag()
        to_fine[:dims, dims] = (step - 1) / 2  # faces lie on faces
        found = _nested(u, coarse, affine @ to_fine, tol).value
        assert isinstance(found, Tensor)
        start = resize_displacement(found, shape)
    return _solve(u, u.new_zeros(len(u), dims, *shape), affine, start, tol)


def _solve(u: Tensor, target: Tensor, affine: Tensor, start: Tensor | None, tol: float = _TOL) -> Solution:
    """`v` with `v(x) + L^-1 u(A(x + v(x))) = target(x)` in voxels of the target's grid, `L` the linear part of `A`."""
    dims = u.shape[1]
    forth = affine[:, :dims].double()
    if not bool((forth == torch.eye(dims)).all()):
        u = torch.einsum("ab,nb...->na...", torch.linalg.inv(forth).to(u), u).contiguous()
    mapping = affine.to(u).expand(len(u), -1, -1).contiguous()

    def rest(v: Tensor) -> Tensor:
        return ops.warp(u, v, affine=mapping).add_(v).sub_(target)

    if start is None:
        found = fixed_point(lambda v: v - rest(v), target, solver=_APPROACH).value
        assert isinstance(found, Tensor)
        start = found
    solution = None
    for _ in range(_ROUNDS):
        inverse = _inverse_slopes(u, start, mapping)
        solution = fixed_point(
            lambda v, inverse=inverse: v - _bounded(inverse, rest(v)), start, solver=replace(_ROUND, tol=tol)
        )
        assert isinstance(solution.value, Tensor)
        start = solution.value
        if solution.converged:
            break
    assert solution is not None
    return solution


def _inverse_slopes(u: Tensor, v: Tensor, affine: Tensor) -> Tensor:
    """`[N, d, d, *S]`: `J^-1` where `v` points, as `adj(J) det(J) / (det(J)^2 + e)`, `J = I + du/dv`."""
    dims, one = u.shape[1], torch.ones_like(v[:, :1])
    found = v.new_empty(len(v), dims, dims, *v.shape[2:])
    for row in range(dims):
        by_position = ops.warp_gradient(u[:, row : row + 1].contiguous(), v, one, affine=affine)
        for column in range(dims):
            slope = found[:, row, column].fill_(float(row == column))
            for axis in range(dims):
                slope.addcmul_(by_position[:, axis], affine[:, axis, column].view(-1, *[1] * dims))
    for part in found.flatten(3).split(_SLAB, dim=3):
        part.copy_(_damped_inverse(part))
    return found


def _damped_inverse(matrix: Tensor) -> Tensor:
    """`adj(M) det(M) / (det(M)^2 + e)` of `[N, d, d, P]`."""
    dims = matrix.shape[1]
    m = [[matrix[:, i, j] for j in range(dims)] for i in range(dims)]
    if dims == 2:
        adjugate = torch.stack([m[1][1], -m[0][1], -m[1][0], m[0][0]], 1)
    else:
        after = {0: (1, 2), 1: (2, 0), 2: (0, 1)}  # cyclic, so that every cofactor has its sign
        pairs = [(after[i], after[j]) for j in range(3) for i in range(3)]
        adjugate = torch.stack([m[a][c] * m[b][d] - m[a][d] * m[b][c] for (a, b), (c, d) in pairs], 1)
    determinant = (matrix[:, 0] * adjugate[:, ::dims]).sum(1)
    weight = determinant / determinant.square().add_(_DAMPING)
    return adjugate.mul_(weight.unsqueeze(1)).unflatten(1, (dims, dims))


def _bounded(inverse: Tensor, rest: Tensor) -> Tensor:
    """`J^-1 r`, no longer than the longest step."""
    step = torch.zeros_like(rest)
    for axis in range(rest.shape[1]):
        step.addcmul_(inverse[:, :, axis], rest[:, axis : axis + 1])
    # vector_norm along axis 1 takes torch thirty times as long on a CPU
    length = step[:, :1].square()
    for component in step[:, 1:].split(1, dim=1):
        length.addcmul_(component, component)
    return step.mul_(_LONGEST_STEP / length.sqrt_().clamp_(min=_LONGEST_STEP))
