"""What a training makes small, as one module, so that data-parallel training sees one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deqreg import losses, ops
from deqreg.data import Batch
from deqreg.equilibrium import Solution, State, Unrolled, fixed_point
from deqreg.training.config import Config, Loss


class Objective(nn.Module):
    """The losses of a batch at the equilibrium of a network's update, and what keeps the way there straight.

    Args:
        net: with `prepare(fixed, moving) -> (f, z0)`, the update of the pair and its first state; `displacement(z,
            shape) -> [N, d, *shape]`, in voxels; and its `solver` and `adjoint`.
        config: weights and settings.
    """

    def __init__(self, net: nn.Module, config: Config) -> None:
        super().__init__()
        self.net, self.config = net, config

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[dict[str, Tensor], Solution]:
        """The losses, each a number, `"loss"` their weighted sum; and how the equilibrium was found.

        Args:
            batch: the pairs.
            generator: for which iterates are corrected, and in which direction the Jacobian is looked at.
        """
        net: Any = self.net
        shape, correction = batch.fixed.shape[2:], self.config.correction
        update, start = net.prepare(batch.fixed_input, batch.moving_input)
        recorded = Recorder(update, correction.count, generator, always=isinstance(net.adjoint, Unrolled))
        solution = fixed_point(recorded, start, solver=net.solver, adjoint=net.adjoint)
        found = registration_losses(net.displacement(solution.value, shape), batch, self.config.loss)
        total = found["loss"]
        for age, state in enumerate(reversed(recorded.states())):
            on_the_way = registration_losses(net.displacement(update(state), shape), batch, self.config.loss)["loss"]
            total = total + correction.weight * correction.decay**age * on_the_way
        jacobian = self.config.jacobian
        if jacobian.weight > 0 and float(torch.rand((), generator=generator)) < jacobian.probability:
            found["jacobian"] = jacobian_norm(update, solution.value, jacobian.epsilon, generator)
            total = total + jacobian.weight * found["jacobian"]
        return {**found, "loss": total}, solution


def registration_losses(displacement: Tensor, batch: Batch, loss: Loss) -> dict[str, Tensor]:
    """The losses of a displacement, each the mean over the batch, `"loss"` their weighted sum.

    A pair without labels, landmarks or a known displacement adds nothing to the loss that needs them. Each is a sum
    over pairs divided by their number, so that the mean over two half batches is that over the whole.

    Args:
        displacement: `u`, `[N, d, *S]`, in voxels.
        batch: the pairs.
        loss: weights and settings.
    """
    displacement = displacement.float()
    warped = ops.warp(batch.moving, displacement)
    if loss.similarity == "lncc":
        similarity = losses.lncc(batch.fixed, warped, window=loss.window, mask=batch.fixed_mask)
    else:
        similarity = losses.mse(batch.fixed, warped, mask=batch.fixed_mask)
    parts = {"similarity": (1.0, similarity)}
    if loss.smoothness > 0:
        parts["smoothness"] = (loss.smoothness, losses.diffusion(displacement, batch.spacing))
    if loss.folding > 0:
        parts["folding"] = (loss.folding, losses.folding(displacement, loss.margin))
    if loss.dice > 0 and batch.fixed_labels is not None and batch.moving_labels is not None:
        overlap = losses.soft_dice(displacement, batch.fixed_labels, batch.moving_labels, batch.labels)
        parts["soft_dice"] = (loss.dice, overlap)
    if loss.landmarks > 0 and any(points is not None for points in batch.points):
        parts["landmarks"] = (loss.landmarks, _landmarks(displacement, batch))
    if loss.known > 0 and batch.truth is not None:
        edges = torch.tensor(batch.spacing).to(displacement).view(1, -1, *[1] * (displacement.ndim - 2))
        error = losses.endpoint_error(displacement * edges, batch.truth * edges, batch.fixed_mask)
        parts["known"] = (loss.known, error * batch.known)
    found = {name: value.mean() for name, (_, value) in parts.items()}
    found["loss"] = torch.stack([weight * found[name] for name, (weight, _) in parts.items()]).sum()
    return found


def _landmarks(displacement: Tensor, batch: Batch) -> Tensor:
    """`[N]`, millimetres; 0 for pairs without landmarks."""
    found = [
        displacement.new_zeros(1) if points is None else losses.landmarks(u[None], *points, batch.spacing)
        for u, points in zip(displacement, batch.points, strict=True)
    ]
    return torch.cat(found)


def jacobian_norm(update: Callable[[State], State], state: State, epsilon: float, generator: torch.Generator) -> Tensor:
    """An estimate of `||df/dz||_F^2 / dim z` at a state: the mean square of `(f(z + e v) - f(z)) / e`, `v` Gaussian.

    Args:
        update: `f`.
        state: `z`, which is taken as given.
        epsilon: `e`.
        generator: of `v`, on the CPU.

    >>> z = torch.zeros(1, 50000)
    >>> round(jacobian_norm(lambda z: 0.5 * z, z, 0.01, torch.Generator().manual_seed(0)).item(), 2)
    0.25
    """
    parts = [part.detach() for part in _parts(state)]
    moved = [part + epsilon * torch.randn(part.shape, generator=generator).to(part) for part in parts]
    single = isinstance(state, Tensor)
    at, beside = (_parts(update(z[0] if single else tuple(z))) for z in (parts, moved))
    squared = [((b.float() - a.float()) / epsilon).square().sum() for a, b in zip(at, beside, strict=True)]
    return torch.stack(squared).sum() / sum(part.numel() for part in parts)


def _parts(state: State) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state


class Recorder:
    """An update that keeps a few of the states it is given, each with the same chance, in their order.

    What the adjoint evaluates is told by its graph: its look for gradients, which is the solver's first evaluation too
    and not considered, and what follows the solve.

    Args:
        update: the update.
        count: how many to keep.
        generator: which.
        always: whether evaluations with a graph are the solver's too, as they are when it is unrolled.
    """

    def __init__(
        self, update: Callable[[Any], Any], count: int, generator: torch.Generator, *, always: bool = False
    ) -> None:
        self.update, self.count, self.generator, self.always = update, count, generator, always
        self.seen, self.kept = 0, {}

    def __call__(self, state: Any) -> Any:
        """The next state."""
        if self.count and torch.is_grad_enabled() == self.always:
            self._consider(state)
        return self.update(state)

    def _consider(self, state: Any) -> None:
        # Vitter's algorithm R: the n-th comes in with a chance of count / n, in place of any of those kept
        self.seen += 1
        slot = self.seen - 1
        if slot >= self.count:
            slot = int(torch.randint(self.seen, (), generator=self.generator))
        if slot < self.count:
            # the solver uses the state's memory again
            copy = tuple(part.detach().clone() for part in _parts(state))
            self.kept[slot] = (self.seen, copy[0] if isinstance(state, Tensor) else copy)

    def states(self) -> list[Any]:
        """The states kept, in the order in which they came."""
        return [state for _, state in sorted(self.kept.values(), key=lambda pair: pair[0])]
