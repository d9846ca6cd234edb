"""Every operator once more, in a few lines of plain torch: slow, and obviously right.

Arguments are those of the operator of the same name. Nothing outside the tests and benchmarks calls these.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deqreg import _C
from deqreg.ops.anderson import AndersonCounter, AndersonLevel, AndersonStatus, anderson_partials


def positions(displacement: Tensor, affine: Tensor | None = None) -> Tensor:
    """Sample positions `A (x + u) + t`, `[N, d, *S]`, in voxels."""
    axes = [torch.arange(n, dtype=displacement.dtype, device=displacement.device) for n in displacement.shape[2:]]
    moved = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement
    if affine is None:
        return moved
    dims = displacement.shape[1]
    shift = affine[:, :, dims].view(*affine.shape[:2], *[1] * dims)
    return torch.einsum("nab,nb...->na...", affine[:, :, :dims], moved) + shift


def corners(position: Tensor, shape: Sequence[int], interpolation: str, padding: str) -> list[tuple[Tensor, Tensor]]:
    """Flat voxel index `[N, *S]` and weight `[N, *S]` of every voxel that interpolation at `position` reads."""
    found = []
    near = [0, 1] if interpolation == "linear" else [0]
    first = torch.floor(position if interpolation == "linear" else position + 0.5)
    for corner in itertools.product(near, repeat=len(shape)):
        index, weight = torch.zeros_like(position[:, 0], dtype=torch.long), torch.ones_like(position[:, 0])
        for axis, size in enumerate(shape):
            voxel = first[:, axis] + corner[axis]
            if interpolation == "linear":
                weight = weight * (1 - (position[:, axis] - voxel).abs())
            if padding == "zeros":
                weight = weight * ((voxel >= 0) & (voxel < size))
            index = index * size + voxel.clamp(0, size - 1).long()
        found.append((index, weight))
    return found


def warp(
    image: Tensor,
    displacement: Tensor,
    *,
    affine: Tensor | None = None,
    interpolation: str = "linear",
    padding: str = "border",
) -> Tensor:
    """`image(A (x + u(x)) + t)`, corner by corner."""
    flat, out = image.flatten(2), 0
    for index, weight in corners(positions(displacement, affine), image.shape[2:], interpolation, padding):
        picked = flat.gather(2, index.flatten(1)[:, None].expand(-1, image.shape[1], -1))
        out = out + picked.view(*image.shape[:2], *displacement.shape[2:]) * weight[:, None]
    return torch.as_tensor(out)


def splat(
    values: Tensor,
    displacement: Tensor,
    shape: Sequence[int],
    *,
    affine: Tensor | None = None,
    interpolation: str = "linear",
    padding: str = "border",
) -> Tensor:
    """`image(y(x)) += values(x)`, corner by corner."""
    size = torch.Size(shape).numel()
    image = values.new_zeros(*values.shape[:2], size)
    for index, weight in corners(positions(displacement, affine), shape, interpolation, padding):
        target = index.flatten(1)[:, None].expand(-1, values.shape[1], -1)
        image = image.scatter_add(2, target, (values * weight[:, None]).flatten(2))
    return image.view(*values.shape[:2], *shape)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """`b(x) + a(x + b(x))`."""
    return inner + warp(outer, inner)


def exponential(velocity: Tensor, steps: int = 7) -> Tensor:
    """Scaling and squaring."""
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def gaussian(image: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """A dense matrix an axis: row `x` holds the taps around `x`, mirrored at the faces."""
    dims = image.ndim - 2
    for axis, s in enumerate([sigma] * dims if isinstance(sigma, (int, float)) else sigma):
        size, radius = image.shape[axis + 2], math.ceil(3 * s)
        taps = [math.exp(-0.5 * (k / s) ** 2) if s else 1.0 for k in range(-radius, radius + 1)]
        matrix = image.new_zeros(size, size)
        for x, k in itertools.product(range(size), range(-radius, radius + 1)):
            mirrored = (x + k) % (2 * size)
            matrix[x, min(mirrored, 2 * size - 1 - mirrored)] += taps[k + radius] / sum(taps)
        image = torch.movedim(torch.movedim(image, axis + 2, -1) @ matrix.T, -1, axis + 2)
    return image


def resize(image: Tensor, shape: Sequence[int]) -> Tensor:
    """A dense matrix an axis: row `i` holds the weights of the two voxels around `(i + 1/2) source / target - 1/2`."""
    for axis, target in enumerate(shape):
        source = image.shape[axis + 2]
        x = ((torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5).clamp(0, source - 1)
        hats = (1 - (x[:, None] - torch.arange(source, dtype=torch.float64)).abs()).clamp(min=0)
        image = torch.movedim(torch.movedim(image, axis + 2, -1) @ hats.T.to(image), -1, axis + 2)
    return image


def correlation(fixed: Tensor, moving: Tensor, displacement: Tensor | None = None, *, radius: int) -> Tensor:
    """One warp and one dot product a shift."""
    dims = fixed.ndim - 2
    if displacement is None:
        displacement = fixed.new_zeros(fixed.shape[0], dims, *fixed.shape[2:])
    products = []
    for delta in itertools.product(range(-radius, radius + 1), repeat=dims):
        shift = displacement.new_tensor(delta).view(-1, *[1] * dims)
        products.append((fixed * warp(moving, displacement + shift)).sum(1))
    return torch.stack(products, dim=1) / math.sqrt(fixed.shape[1])


def correlation_projection(
    fixed: Tensor,
    moving: Tensor,
    displacement: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    radius: int,
) -> Tensor:
    """All correlations, and a matrix product."""
    projected = torch.einsum("ok,nk...->no...", weight, correlation(fixed, moving, displacement, radius=radius))
    return projected if bias is None else projected + bias.view(-1, *[1] * (fixed.ndim - 2))


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """`det(I + du/dx)` by `torch.gradient`."""
    columns = []
    for axis, size in enumerate(displacement.shape[2:]):
        columns.append(torch.gradient(displacement, dim=axis + 2)[0] if size > 1 else 0 * displacement)
    jacobian = torch.stack(columns, dim=-1).movedim(1, -2)
    return torch.linalg.det(jacobian + torch.eye(len(columns), dtype=jacobian.dtype, device=jacobian.device))


def lncc(
    fixed: Tensor,
    warped: Tensor,
    *,
    window: int = 9,
    mask: Tensor | None = None,
    epsilon: float = 1e-6,
    shared: float = 0.0,
) -> Tensor:
    """Moments by box sums, centred by the sample's mean so that float32 does not cancel."""
    inside = torch.ones_like(fixed) if mask is None else (mask != 0).to(fixed.dtype)
    voxels = inside.flatten(1).sum(1).clamp(min=1).view(-1, *[1] * (fixed.ndim - 1))

    def box(values: Tensor) -> Tensor:
        values = torch.nn.functional.pad(values, [window // 2] * 2 * (values.ndim - 2))
        for axis in range(2, values.ndim):
            values = values.unfold(axis, window, 1).sum(-1)
        return values

    def centre(image: Tensor) -> Tensor:
        image = image.where(inside > 0, 0)
        shift = (image.detach().double() * inside).flatten(1).sum(1).view_as(voxels) / voxels
        return (image - shift.to(image.dtype)) * inside

    def mean(values: Tensor) -> Tensor:
        return box(values) / count

    count = box(inside).clamp(min=1)
    i, j = centre(fixed), centre(warped)
    covariance = mean(i * j) - mean(i) * mean(j) + shared
    variances = [(mean(a * a) - mean(a).square()).clamp(min=0) + epsilon for a in (i, j)]
    return (inside * covariance.square() / (variances[0] * variances[1]) / voxels).flatten(1).sum(1)


def anderson_update(
    z: Tensor, value: Tensor, values: Tensor, residuals: Tensor, partials: Tensor, counters: Tensor, offset: int = 0
) -> None:
    """One sample after the other; a chunk's products by `(a * b).sum()`."""
    chunks = anderson_partials(z.shape[1:].numel())
    for n, (slot, _, valid, *_, status) in enumerate(counters.tolist()):
        if status != AndersonStatus.RUNNING:
            continue
        values[slot, n], residuals[slot, n] = value[n], value[n] - z[n]
        for j in range(len(values) + 1):
            if j == len(values):
                products = value[n].double().square()
            elif j == slot or valid >> j & 1:
                products = residuals[j, n].double() * residuals[slot, n].double()
            else:
                continue
            for p in range(chunks):
                chunk = products.flatten()[p * _C.anderson_chunk : (p + 1) * _C.anderson_chunk]
                partials[n, offset + p, j] = chunk.sum()


def anderson_weights(gram: Tensor, history: list[int], regularisation: float) -> Tensor:
    """Minimiser of `w^T (G + regularisation diag(G)) w` under `sum w = 1`, by a pseudo-inverse on a unit diagonal."""
    block = gram[history][:, history]
    scale = block.diagonal().rsqrt()
    unit = block * scale * scale[:, None] + regularisation * torch.eye(len(history)).to(block)
    weights = scale * (torch.linalg.pinv(unit, hermitian=True) @ scale)
    return weights / weights.sum()


def anderson_solve(
    partials: Tensor,
    gram: Tensor,
    counters: Tensor,
    levels: Tensor,
    history: Tensor,
    weights: Tensor,
    *,
    memory: int,
    damping: float,
    regularisation: float,
    tol: float,
    growth: float,
    divergence: float,
    patience: int,
    relative: float,
    absolute: float,
) -> None:
    """The rules of `deqreg.ops.anderson_solve` one by one, a sample at a time."""
    slots = gram.shape[1]
    for n, row in enumerate(partials.sum(1)):
        slot, best, valid, mixed, retreats, stale, steps, status = counters[n].tolist()
        if status != AndersonStatus.RUNNING:
            continue
        valid |= 1 << slot
        for j in range(slots):
            if valid >> j & 1:
                gram[n, slot, j] = gram[n, j, slot] = row[j]
        squared, residual = float(row[slot]), float(row[slot].sqrt() / (relative * row[slots].sqrt() + absolute))
        finite = bool(row[slot].isfinite() and row[slots].isfinite())
        history[steps, n] = residual
        if finite and (best < 0 or squared < 0.999 * levels[n, AndersonLevel.REFERENCE]):
            levels[n, AndersonLevel.REFERENCE], stale = squared, -1
        if finite and (best < 0 or squared < gram[n, best, best]):
            best, retreats = slot, 0
        stale += 1
        step, chosen = damping, []
        if finite and residual <= tol:
            status, best = AndersonStatus.CONVERGED, slot
        elif not finite and (best < 0 or retreats == 5):
            status = AndersonStatus.NONFINITE
            retreats += best >= 0
        elif not finite:
            retreats += 1
            step, chosen, valid = damping * 0.5**retreats, [best], 1 << best
            levels[n, AndersonLevel.REFERENCE] = gram[n, best, best]
        elif squared > divergence**2 * gram[n, best, best]:
            status = AndersonStatus.DIVERGED
        else:
            grew = squared > growth**2 * float(levels[n, AndersonLevel.REFERENCE])
            if grew:
                levels[n, AndersonLevel.REFERENCE], stale = squared, 0
            if (grew and mixed) or memory == 1:
                valid = 1 << slot
            if stale >= patience:
                status = AndersonStatus.STAGNATED
            chosen = [j for j in range(slots) if valid >> j & 1]
        weights[n] = 0
        if chosen:
            weights[n, chosen] = anderson_weights(gram[n], chosen, regularisation)
        levels[n, AndersonLevel.STEP] = step
        mixed = valid.bit_count() > 1
        slot = (slot + 1) % slots
        slot = (slot + 1) % slots if slot == best else slot
        counters[n] = torch.tensor([slot, best, valid & ~(1 << slot), mixed, retreats, stale, steps + 1, status])


def anderson_mix(
    values: Tensor, residuals: Tensor, weights: Tensor, levels: Tensor, counters: Tensor, z: Tensor
) -> None:
    """`z = sum_j w_j (f_j - (1 - step) g_j)` over the slots of non-zero weight."""
    for n in range(len(z)):
        if counters[n, AndersonCounter.STATUS] == AndersonStatus.RUNNING:
            used = weights[n].nonzero()[:, 0]
            terms = values[used, n].double() - (1 - levels[n, AndersonLevel.STEP]) * residuals[used, n].double()
            z[n] = torch.tensordot(weights[n, used], terms, dims=1)
