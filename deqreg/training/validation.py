"""How good a network is on pairs that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from deqreg import losses, metrics, ops
from deqreg.data import Batch, Pairs
from deqreg.training.config import Loss
from deqreg.training.objective import registration_losses
from deqreg.training.processes import Processes


@torch.no_grad()
def validate(net: nn.Module, pairs: Pairs, loss: Loss, here: Processes) -> dict[str, float]:
    """Means over the pairs, each process having registered its share of them, on the grid that is trained on.

    Args:
        net: `net(fixed, moving) -> (displacement, solution)`.
        pairs: fixed and moving.
        loss: settings of the similarity.
        here: this process.

    Returns:
        `similarity`, the loss; `folding`, percent of voxels; `residual` and `steps` of the solver; `converged`, a
        share; `dice` and `dice_before`, the mean over the pairs that have a label in common of the mean over labels;
        `tre` and `tre_before`, millimetres, where there are landmarks.
    """
    net.eval()
    own = [_measures(net, pairs.listed(i, here.device), loss) for i in range(here.rank, len(pairs), here.count)]
    everyone = [measures for share in here.gather(own) for measures in share]
    names = dict.fromkeys(name for measures in everyone for name in measures)
    return {name: fmean(measures[name] for measures in everyone if name in measures) for name in names}


def better(new: dict[str, float], old: dict[str, float] | None) -> bool:
    """Whether a validation beats another: by Dice, else by landmarks, else by similarity; a number beats none.

    >>> better({"dice": 0.6, "similarity": 0.5}, {"dice": 0.5, "similarity": 0.4})
    True
    """
    if old is None:
        return True
    for name, sign in (("dice", 1), ("tre", -1), ("similarity", -1)):
        if name in new and name in old and math.isfinite(new[name]):
            return not math.isfinite(old[name]) or sign * (new[name] - old[name]) > 0
    return False


def _measures(net: nn.Module, batch: Batch, loss: Loss) -> dict[str, float]:
    displacement, solution = net(batch.fixed_input, batch.moving_input)
    plain = Loss(similarity=loss.similarity, window=loss.window, smoothness=0)
    determinant = ops.jacobian_determinant(displacement.float())
    found: dict[str, Any] = {
        "similarity": registration_losses(displacement, batch, plain)["similarity"],
        "folding": 100 * (determinant <= 0).float().mean(),
        "residual": solution.residuals[-1].max(),
        "steps": solution.steps.max(),
        "converged": float(solution.converged),
    }
    for suffix, u in (("_before", torch.zeros_like(displacement)), ("", displacement)):
        found.update({name + suffix: value for name, value in _accuracy(u.float(), batch)})
    return {name: float(value) for name, value in found.items()}


def _accuracy(displacement: Tensor, batch: Batch) -> Iterator[tuple[str, float]]:
    fixed, moving = batch.fixed_labels, batch.moving_labels
    if fixed is not None and moving is not None and metrics.dice(fixed[0], moving[0]):
        warped = ops.warp(moving[:, None].float(), displacement, interpolation="nearest")
        # a warp that loses every label has no overlap
        yield "dice", metrics.mean_over_labels(metrics.dice(fixed[0], warped[0, 0]) or {1: 0.0})
    if batch.points[0] is not None:
        yield "tre", float(losses.landmarks(displacement, *batch.points[0], batch.spacing))
