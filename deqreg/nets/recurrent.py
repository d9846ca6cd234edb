"""The learned update: the classical step on learned features, and a gated recurrent unit that corrects it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from deqreg import ops
from deqreg.nets.encoder import CONV

State = tuple[Tensor, Tensor]
Look = tuple[Tensor, Tensor]
# parts of a voxel's features, which lie in several tensors: to join them takes as much memory again
Parts = Sequence[Tensor]


class RecurrentUpdate(nn.Module):
    """One step of a learned registration on one level, `(u, h) -> f(u, h)`: displacement and hidden features.

    The similarity is that of the features around the current field, `c(delta, x) = -|F(x) - M(x + u(x) + delta)|^2 / 2`
    for shifts `delta` in a window of three voxels. Its slope over the window is the classical force. A minimal gated
    unit sees the window, how the field bends, and its own memory:

        z = sigmoid(W_z x), n = tanh(W_n x), h' = h + z (n - h),   x = (c, u - G_1 u, h)
        F = G_update * (exp(a) * 2 sigmoid(w_g h') * slope(c) + W_o h')
        u' = G_field * compose(u, F / sqrt(1 + |F|^2 / longest^2))

    `w_g` and `W_o` start at zero, so that the update starts as the classical one on the features, and can learn only
    what helps. Weights are normalised, gates and steps bounded, and nothing depends on the iteration or on batch
    mates, so that it can come to rest. Every part is differentiable, so its equilibrium is too.

    Args:
        dims: 2 or 3.
        hidden: channels of `h`.
        kernel: edge of the recurrent convolution in voxels, odd.
        bridge: whether the classical force enters. Without it, the field moves by `W_o h'` alone, and `W_o` does not
            start at zero.
        gain: the classical force's first factor, `exp(a)`.
        longest_step: displacement in voxels that no step exceeds.
        smooth_update: standard deviation in voxels of the Gaussian on each step.
        smooth_field: standard deviation in voxels of the Gaussian on the field after each step.

    Raises:
        ValueError: when an argument is out of range.

    Reference: Zhang, Zhao & Tao, MICCAI 2025 (doi 10.1007/978-3-032-04947-6_9); Teed & Deng, RAFT, ECCV 2020, for
    lookups around the current field; Zhou et al., minimal gated unit, 2016.

    >>> update = RecurrentUpdate(dims=2, hidden=4)
    >>> features = torch.nn.functional.normalize(torch.rand(1, 8, 12, 12), dim=1)
    >>> u, h = update.on([features], [features])(update.start(features))
    >>> list(u.shape), list(h.shape), bool(u.norm(dim=1).max() < 0.25)
    ([1, 2, 12, 12], [1, 4, 12, 12], True)
    """

    def __init__(
        self,
        *,
        dims: int = 3,
        hidden: int = 8,
        kernel: int = 1,
        bridge: bool = True,
        gain: float = 10.0,
        longest_step: float = 0.25,
        smooth_update: float = 1.5,
        smooth_field: float = 0.5,
    ) -> None:
        super().__init__()
        if hidden < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"hidden must be positive and kernel odd, got {hidden} and {kernel}")
        if gain <= 0 or longest_step <= 0:
            raise ValueError(f"gain and longest_step must be positive, got {gain} and {longest_step}")
        self.dims, self.hidden, self.bridge = dims, hidden, bridge
        self.longest_step, self.smooth_update, self.smooth_field = longest_step, smooth_update, smooth_field
        conv = CONV[dims]
        self.gates = weight_norm(conv(3**dims + dims + hidden, 2 * hidden, kernel, padding=kernel // 2))
        self.out = weight_norm(conv(hidden, 1 + dims, 1, bias=False))
        # a parameter that no step uses must not wait for a gradient; it stays, for weights on file hold it
        self.log_gain = nn.Parameter(torch.tensor(math.log(gain)), requires_grad=bridge)
        if bridge:
            # the norms: the weights are their multiples
            nn.init.zeros_(self.out.get_parameter("parametrizations.weight.original0"))
        self.register_buffer("_differences", central_differences(dims), persistent=False)

    def start(self, features: Tensor) -> State:
        """No displacement and empty memory, for features `[N, C, *S]`."""
        batch, _, *size = features.shape
        return features.new_zeros(batch, self.dims, *size), features.new_zeros(batch, self.hidden, *size)

    def on(self, fixed: Parts, moving: Parts, weight: Tensor | float = 1.0) -> Callable[[State], State]:
        """The update of one pair of features, in parts `[N, C_i, *S]`; their squared distance counts `weight` times."""
        features = squared_distance_features(fixed, moving)
        gates, out = _weight(self.gates), _weight(self.out)  # normalised once, not once a step
        see = self._look_by_voxel if gates[0, 0].numel() == 1 else self._look
        look = see(gates, weight, *features)

        def update(state: State) -> State:
            return self._step(look, out, *state)

        return update

    def _look(
        self, gates: Tensor, weight: Tensor | float, fixed: Tensor, moving: Tensor, energy: Tensor
    ) -> Callable[[Tensor, Tensor], Look]:
        """What the gates make of window, bend and memory, before they are bounded, and the window's slope."""
        bias, differences = self.gates.get_parameter("bias"), self.get_buffer("_differences")
        scale = math.sqrt(fixed.shape[1])  # what `correlation` divides by

        def look(u: Tensor, h: Tensor) -> Look:
            window = weight * (scale * ops.correlation(fixed, moving, u, radius=1) - energy)
            seen = torch.cat([window, u - ops.gaussian(u, 1.0), h], dim=1)
            return _convolve(seen, gates, bias), _convolve(window, differences, None)

        return look

    def _look_by_voxel(
        self, gates: Tensor, weight: Tensor | float, fixed: Tensor, moving: Tensor, energy: Tensor
    ) -> Callable[[Tensor, Tensor], Look]:
        """The same for gates that see one voxel, which need its window only in so many sums."""
        bias, differences = self.gates.get_parameter("bias"), self.get_buffer("_differences")
        gates = gates.flatten(1)
        of_window, of_rest = gates[:, : 3**self.dims], gates[:, 3**self.dims :]
        sums = torch.cat([of_window, differences.flatten(1)]) * (weight * math.sqrt(fixed.shape[1]))
        start = torch.cat([bias, bias.new_zeros(self.dims)])
        # the energy is the same for a voxel's whole window
        of_energy = -weight * of_window.sum(1, keepdim=True)
        of_rest = torch.cat([of_rest, of_energy], dim=1).expand(fixed.shape[0], -1, -1)

        def look(u: Tensor, h: Tensor) -> Look:
            seen = ops.correlation_projection(fixed, moving, u, sums, start, radius=1)
            rest = torch.cat([u - ops.gaussian(u, 1.0), h, energy], dim=1)
            # fresh memory is what costs the most here
            seen.flatten(2)[:, : -self.dims].baddbmm_(of_rest, rest.flatten(2))
            return seen[:, : -self.dims], seen[:, -self.dims :]

        return look

    def _step(self, look: Callable[[Tensor, Tensor], Look], weight: Tensor, u: Tensor, h: Tensor) -> State:
        gates, slope = look(u, h)
        gate, candidate = gates.chunk(2, dim=1)
        h = torch.lerp(h, torch.tanh(candidate), torch.sigmoid(gate))
        out = _convolve(h, weight, None)
        force = out[:, 1:]
        if self.bridge:
            force = force + self.log_gain.exp() * 2 * torch.sigmoid(out[:, :1]) * slope
        force = ops.gaussian(force, self.smooth_update)
        step = force * torch.rsqrt(1 + force.square().sum(1, keepdim=True) / self.longest_step**2)
        return ops.gaussian(ops.compose(u, step), self.smooth_field), h


def _weight(conv: nn.Module) -> Tensor:
    """The weight of a convolution, normalised."""
    weight = conv.weight
    assert isinstance(weight, Tensor)
    return weight


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution that keeps the grid; over single voxels a matrix product, which is three times as fast.

    Autocast computes it in half precision; what comes back is as precise as `x`, for the state is.
    """
    if weight[0, 0].numel() > 1:
        convolve = torch.conv3d if x.ndim == 5 else torch.conv2d
        return convolve(x, weight, bias, padding=weight.shape[-1] // 2).to(x.dtype)
    out = weight.flatten(1) @ x.flatten(2)
    if bias is not None:
        out = out + bias[:, None]
    return out.view(x.shape[0], -1, *x.shape[2:]).to(x.dtype)


def central_differences(dims: int) -> Tensor:
    """The slope of a window of three voxels along each axis, as the weight of a convolution, `[dims, 3^dims, 1, ...]`.

    >>> central_differences(2).flatten(1).tolist()
    [[0.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, -0.5, 0.0, 0.5, 0.0, 0.0, 0.0]]
    """
    weight, centre = torch.zeros(dims, 3**dims), 3**dims // 2
    for axis in range(dims):
        stride = 3 ** (dims - 1 - axis)  # the last axis is fastest
        weight[axis, centre + stride], weight[axis, centre - stride] = 0.5, -0.5
    return weight.view(dims, 3**dims, *[1] * dims)


def squared_distance_features(fixed: Parts, moving: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Features whose products are minus half the squared distance of the given ones.

    `<(F, 1), (M, -|M|^2 / 2)> - |F|^2 / 2 = -|F - M|^2 / 2`.

    Args:
        fixed: `F`, in parts `[N, C_i, *S]`.
        moving: as fixed.

    Returns:
        Both joined and with a channel more, `[N, sum C_i + 1, *S]`, and `|F|^2 / 2`, `[N, 1, *S]`.

    >>> f, m = torch.rand(2, 1, 3, 4, 4)
    >>> f1, m1, energy = squared_distance_features([f], [m])
    >>> distance = (f - m).square().sum(1, keepdim=True)
    >>> torch.allclose((f1 * m1).sum(1, keepdim=True) - energy, -distance / 2, atol=1e-6)
    True
    """
    energy, other = _squares(fixed) / 2, _squares(moving) / 2
    return torch.cat([*fixed, torch.ones_like(energy)], dim=1), torch.cat([*moving, -other], dim=1), energy


def _squares(parts: Parts) -> Tensor:
    """Their sum over all channels, `[N, 1, *S]`; by correlations, which hold none of them in memory."""
    sums = [math.sqrt(part.shape[1]) * ops.correlation(part, part, radius=0) for part in parts]
    return torch.cat(sums, dim=1).sum(1, keepdim=True)
