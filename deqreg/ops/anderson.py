"""Anderson acceleration on a ring of past iterates, in place and without waiting for the device: update, solve, mix.

One step for a state `z` and `f = f(z)` is `anderson_update` for each of the state's tensors, one `anderson_solve`, and
`anderson_mix` for each tensor. All that decides the next step is per sample and stays on the device:

- `values`, `residuals`: the rings, `[slots, N, *S]`, uninitialised at first.
- `counters`: `[N, len(AndersonCounter)]`, int64, zero at first but for `BEST`, which is -1.
- `levels`: `[N, len(AndersonLevel)]`, float64, zero at first.
- `partials`: `[N, P, slots + 1]`, float64, P the sum of `anderson_partials(elements)` over the state's tensors.
- `gram`: `[N, slots, slots]`, `weights`: `[N, slots]`, `history`: `[max_steps, N]`, float64, zero at first.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from deqreg import _C
from deqreg.ops import checks


class AndersonCounter(IntEnum):
    """Columns of `counters`."""

    SLOT = 0  # of the ring, where the next iterate goes
    BEST = 1  # slot of the iterate with the smallest residual, or -1; never filled while it is the best
    VALID = 2  # bit j: slot j belongs to the present history
    MIXED = 3  # whether the next iterate mixes several past ones
    RETREATS = 4  # steps back after residuals that were not finite, since the best iterate
    STALE = 5  # steps since the reference fell
    STEPS = 6
    STATUS = 7  # an AndersonStatus


class AndersonLevel(IntEnum):
    """Columns of `levels`."""

    REFERENCE = 0  # smallest squared residual since the residual last grew, within a thousandth
    STEP = 1  # length of the next step, 1 for Picard's


class AndersonStatus(IntEnum):
    """How a sample stands. All but RUNNING are final: such a sample is passed over and its state stays."""

    RUNNING = 0
    CONVERGED = 1
    STAGNATED = 2
    DIVERGED = 3
    NONFINITE = 4


def anderson_partials(elements: int) -> int:
    """How many partial sums `anderson_update` leaves for a tensor of so many elements a sample.

    Sums are cut the same way at any number of threads, so that a step's bits do not depend on it.

    >>> anderson_partials(3 * 96 * 112 * 96)
    378
    """
    return math.ceil(elements / _C.anderson_chunk)


def anderson_update(
    z: Tensor, value: Tensor, values: Tensor, residuals: Tensor, partials: Tensor, counters: Tensor, offset: int = 0
) -> None:
    """Enter `value = f(z)` and `g = f(z) - z` into the rings, and sum the newest products.

    `values[slot] <- f(z)`, `residuals[slot] <- g`, and `partials[..., j] <- <g, g_j>` for every slot `j` of the
    history, `<f(z), f(z)>` last, summed in float64.

    Args:
        z: the state or one tensor of it, `[N, *S]`, float32 or float64.
        value: `f(z)`, as `z`.
        values: ring, changed; see the module.
        residuals: ring, changed.
        partials: changed from `offset` on.
        counters: which slot is next, and which are in the history.
        offset: of this tensor's partials, `anderson_partials` of the tensors before it.

    Raises:
        ValueError: when a shape, dtype or device breaks this contract.
        RuntimeError: when an argument requires a gradient outside `torch.no_grad`; these operators have none.

    >>> import torch
    >>> counters = torch.tensor([[0, -1, 0, 0, 0, 0, 0, 0]])
    >>> values, residuals = torch.empty(2, 1, 3), torch.empty(2, 1, 3)
    >>> partials = torch.zeros(1, 1, 3, dtype=torch.float64)
    >>> anderson_update(torch.ones(1, 3), torch.full((1, 3), 3.0), values, residuals, partials, counters)
    >>> residuals[0].tolist(), partials[0, 0, [0, 2]].tolist()
    ([[2.0, 2.0, 2.0]], [12.0, 27.0])
    """
    _forbid_graph("anderson_update", z, value)
    checks.check_same("value", value, "z", z)
    _check_rings(values, residuals, z)
    slots, count = values.shape[0], anderson_partials(z.shape[1:].numel())
    _check_books("counters", counters, (z.shape[0], len(AndersonCounter)), torch.int64, z)
    _check_books("partials", partials, (z.shape[0], "P", slots + 1), torch.float64, z)
    if offset < 0 or offset + count > partials.shape[1]:
        wanted = f"{offset} ... {offset + count - 1}"
        raise ValueError(f"partials must hold entries {wanted}, got {partials.shape[1]} entries")
    torch.ops.deqreg.anderson_update(z, value, values, residuals, partials, counters, offset)


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
    """Judge the newest residual of every running sample and find the weights of its next iterate.

    The weights minimise `w^T (G + regularisation diag(G)) w` under `sum w = 1`, `G_ij = <g_i, g_j>`. A sample converges
    when `r = ||g|| / (relative ||f|| + absolute) <= tol`. Where `||g||` exceeds `growth` times its smallest since it
    last did, the history is dropped for a Picard step; where it is not finite, the sample returns to its best iterate
    and takes a shorter Picard step; beyond `divergence` times the smallest ever it has diverged; after `patience` steps
    in which the smallest did not fall, by a part in 2000 at least, it has stagnated.

    Args:
        partials: as `anderson_update` left them for all tensors of the state.
        gram: changed in the newest row and column; see the module.
        counters: changed.
        levels: changed.
        history: `r` is written in the row of the sample's step.
        weights: changed.
        memory: 1 keeps the newest iterate alone (Picard); otherwise the ring's size bounds the history.
        damping: length of a step, 1 for Picard's.
        regularisation: relative to the squared residuals.
        tol: on `r`.
        growth: above 1.
        divergence: above 1.
        patience: steps.
        relative: of the residual's denominator.
        absolute: of the residual's denominator.

    Raises:
        ValueError: when a shape, dtype or device breaks this contract.

    Reference: Walker & Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49 (2011).

    >>> import torch
    >>> double = torch.float64
    >>> partials = torch.tensor([[[1.0, 0.0, 4.0]]], dtype=double)  # ||g_0||^2, <g_0, g_1>, ||f||^2
    >>> gram = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]], dtype=double)
    >>> counters, levels = torch.tensor([[0, 1, 2, 0, 0, 0, 1, 0]]), torch.ones(1, 2, dtype=double)
    >>> history, weights = torch.zeros(4, 1, dtype=double), torch.zeros(1, 2, dtype=double)
    >>> rule = {"memory": 2, "damping": 1.0, "regularisation": 0.0, "tol": 1e-3, "growth": 2.0, "divergence": 1e3}
    >>> anderson_solve(
    ...     partials, gram, counters, levels, history, weights, **rule, patience=9, relative=1.0, absolute=0.0
    ... )
    >>> history[1].tolist(), weights.tolist()
    ([0.5], [[0.5, 0.5]])
    """
    if gram.ndim != 3 or gram.shape[1] != gram.shape[2] or not 2 <= gram.shape[1] <= _C.anderson_max_slots:
        raise ValueError(
            f"gram must be [N, slots, slots] with 2 ... {_C.anderson_max_slots} slots, got {list(gram.shape)}"
        )
    batch, slots = gram.shape[:2]
    _check_books("partials", partials, (batch, "P", slots + 1), torch.float64, gram)
    _check_books("counters", counters, (batch, len(AndersonCounter)), torch.int64, gram)
    _check_books("levels", levels, (batch, len(AndersonLevel)), torch.float64, gram)
    _check_books("history", history, ("max_steps", batch), torch.float64, gram)
    _check_books("weights", weights, (batch, slots), torch.float64, gram)
    torch.ops.deqreg.anderson_solve(
        partials,
        gram,
        counters,
        levels,
        history,
        weights,
        memory,
        damping,
        regularisation,
        tol,
        growth,
        divergence,
        patience,
        relative,
        absolute,
    )


def anderson_mix(
    values: Tensor, residuals: Tensor, weights: Tensor, levels: Tensor, counters: Tensor, z: Tensor
) -> None:
    """Write every running sample's next iterate.

    `z <- sum_j w_j (f_j - (1 - step) g_j)`, summed in float64; slots of weight zero are not read, and the residuals
    only where the step is damped.

    Args:
        values: ring; see the module.
        residuals: ring.
        weights: as `anderson_solve` left them.
        levels: likewise.
        counters: likewise.
        z: the state or one tensor of it, `[N, *S]`, changed.

    Raises:
        ValueError: when a shape, dtype or device breaks this contract.
        RuntimeError: when an argument requires a gradient outside `torch.no_grad`; these operators have none.

    >>> import torch
    >>> values, residuals = torch.tensor([[[2.0]], [[4.0]]]), torch.ones(2, 1, 1)
    >>> weights, levels = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[1.0, 1.0]]).double()
    >>> z = torch.zeros(1, 1)
    >>> anderson_mix(values, residuals, weights, levels, torch.zeros(1, 8, dtype=torch.int64), z)
    >>> z.item()
    3.0
    """
    _forbid_graph("anderson_mix", values, residuals, z)
    _check_rings(values, residuals, z)
    _check_books("weights", weights, (z.shape[0], values.shape[0]), torch.float64, z)
    _check_books("levels", levels, (z.shape[0], len(AndersonLevel)), torch.float64, z)
    _check_books("counters", counters, (z.shape[0], len(AndersonCounter)), torch.int64, z)
    torch.ops.deqreg.anderson_mix(values, residuals, weights, levels, counters, z)


def _forbid_graph(operator: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError(f"{operator} works in place and has no gradient: call it under torch.no_grad()")


def _check_rings(values: Tensor, residuals: Tensor, z: Tensor) -> None:
    if z.ndim < 1 or z.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"z must be [N, ...], float32 or float64, got {list(z.shape)} {z.dtype}")
    for name, ring in (("values", values), ("residuals", residuals)):
        if ring.ndim != z.ndim + 1 or ring.shape[1:] != z.shape or not 2 <= ring.shape[0] <= _C.anderson_max_slots:
            shape = f"[slots, {', '.join(map(str, z.shape))}]"
            raise ValueError(f"{name} must be {shape} with 2 ... {_C.anderson_max_slots} slots, got {list(ring.shape)}")
    checks.check_same("residuals", residuals, "values", values)
    if values.dtype != z.dtype:
        raise ValueError(f"values must be {z.dtype} as z is, got {values.dtype}")
    checks.check_device("values", values, z)


def _check_books(name: str, tensor: Tensor, shape: tuple[int | str, ...], dtype: torch.dtype, beside: Tensor) -> None:
    """A tensor of this shape, where a name stands for any size."""
    fits = tensor.ndim == len(shape) and all(
        isinstance(w, str) or w == n for w, n in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype != dtype:
        wanted = f"[{', '.join(map(str, shape))}]"
        raise ValueError(f"{name} must be {wanted} {dtype}, got {list(tensor.shape)} {tensor.dtype}")
    checks.check_device(name, tensor, beside)


@torch.library.register_fake("deqreg::anderson_update")
def _(
    z: Tensor, value: Tensor, values: Tensor, residuals: Tensor, partials: Tensor, counters: Tensor, offset: int
) -> None:
    return None


@torch.library.register_fake("deqreg::anderson_solve")
def _(
    partials: Tensor,
    gram: Tensor,
    counters: Tensor,
    levels: Tensor,
    history: Tensor,
    weights: Tensor,
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
    return None


@torch.library.register_fake("deqreg::anderson_mix")
def _(values: Tensor, residuals: Tensor, weights: Tensor, levels: Tensor, counters: Tensor, z: Tensor) -> None:
    return None
