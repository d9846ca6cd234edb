"""The learned method inside of `register`: weights that come with the package, on the grid they were trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from deqreg import ops
from deqreg.equilibrium import Anderson
from deqreg.nets import DEQReg, Similarity
from deqreg.nets.encoder import pad_to_multiple
from deqreg.nets.pretrained import load_weights, packaged
from deqreg.registration import LevelReport, Progress
from deqreg.spatial import Grid, Image, resample, resample_displacement

# Most of the way is made on the coarse level, where a step costs a tenth: there, with a memory of 8, the residual is at
# the tolerance after some 18 steps on pairs that were not trained on. At half of it, after 30 to 41, the labels match
# no better and the field is less even (docs/learned.md). The finest level takes three steps, which mix two iterates.
SOLVERS = (
    Anderson(memory=8, tol=0.006, max_steps=60, norm="rms", patience=None),
    Anderson(memory=2, tol=0.003, max_steps=3, norm="rms", patience=None),
)

# Voxels around a head that the encoder sees: features there tell it from nothing.
_MARGIN = 4


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder made of both images.

    Attributes:
        fixed: `[1, C, *S]`.
        moving: as fixed, of the moving image under the affine map.
        grid: where the voxels of both lie.
    """

    fixed: Tensor
    moving: Tensor
    grid: Grid

    def on(self, grid: Grid, world: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both on another grid, `out(x) = features(W(x))`; `world` is the identity if not given."""
        fixed, moving = (resample(learned, self.grid, grid, world) for learned in (self.fixed, self.moving))
        return fixed, moving


def solve_learned(
    images: tuple[Image, Image],
    world: Tensor,
    displacement: Tensor,
    weights: str,
    similarity: Similarity,
    rounding: float,
    progress: Callable[[Progress], None] | None = None,
    *,
    coarse: bool = False,
) -> tuple[Tensor, LevelReport, Features]:
    """The equilibrium of the learned update.

    Args:
        images: fixed and moving, scaled to [0, 1], each on its grid.
        world: the affine map from fixed to moving points, `[d + 1, d + 1]`.
        displacement: where to start, `[1, d, *S]`, in voxels of any grid over fixed.
        weights: the name of weights that come with the package.
        similarity: what is reported before and after; it has no part in the solution.
        rounding: standard deviation of the Gaussian that takes off interpolation's kinks, in voxels of the network's
            images.
        progress: called when it is done.
        coarse: solve the first level alone, which is all that one sees who goes on from a coarse level.

    Returns:
        The displacement on the fixed grid at the network's spacing, in those voxels, how it went, and the features of
        fixed and moving.

    Raises:
        ValueError: the weights are for images of another number of axes.
    """
    started, (fixed, moving) = time.perf_counter(), images
    net, facts = load_weights(packaged(weights), SOLVERS)
    net = (net.coarsest() if coarse else net).to(fixed.data.device)
    if net.encoder.dims != fixed.grid.dims:
        raise ValueError(f"method equilibrium of this preset is {net.encoder.dims}-D, got {fixed.grid.dims}-D images")
    own = _at_spacing(fixed.grid, facts["spacing"])
    grid = own.upright()  # as the heads were that it was trained on
    fixed, moving = _stripped(fixed), _stripped(moving)
    pair = resample(fixed.data, fixed.grid, grid), resample(moving.data, moving.grid, grid, world)
    start = None
    if displacement.any():
        start = resample_displacement(displacement, fixed.grid.resized(displacement.shape[2:]), grid)
    features = _encoded(net, pair[0], grid), _encoded(net, pair[1], grid)
    u, solution = net(*pair, start=start, features=features)
    if net.strides[-1] > 1:
        u = ops.gaussian(u, rounding)
    before, after = (
        float(similarity.value(pair[0], moved, None))
        for moved in (pair[1] if start is None else ops.warp(pair[1], start), ops.warp(pair[1], u))
    )
    low, high = ops.jacobian_determinant(u).aminmax()
    steps = int(solution.steps[0])
    residuals = tuple(solution.residuals[:, 0].tolist())
    if progress is not None:
        progress(Progress("learned", steps, SOLVERS[0 if coarse else -1].max_steps, residuals[-1], after, own.shape))
    report = LevelReport(
        shape=own.shape,
        field_shape=_coarser(own, net.strides[-1], net.strides[-1]).shape,
        spacing=own.spacing,
        steps=steps,
        status=solution.status.value,
        sentence=solution.message,
        residuals=residuals,
        similarity_before=before,
        similarity_after=after,
        jacobian_range=(float(low), float(high)),
        seconds=time.perf_counter() - started,
    )
    features = Features(*features, _coarser(grid, net.encoder.stride, net.strides[0]))
    return resample_displacement(u, grid, own), report, features


def _stripped(image: Image) -> Image:
    """The image with nothing outside of its mask, as around the heads that the network was trained on."""
    return image if image.mask is None else replace(image, data=torch.where(image.mask > 0, image.data, 0.0))


def _encoded(net: DEQReg, image: Tensor, grid: Grid) -> Tensor:
    """The image's features, on whole voxels of the coarsest level; in bfloat16 on processors that multiply it.

    Of the grid that holds both heads, at 1 mm, that takes 0.7 s of two cores instead of 0.9 to 1.3; features change by
    0.6 % of their length. Only the box around the head is encoded, a quarter less; beyond its faces features go on as
    they are there.
    """
    whole, stride, block = Image(image, grid), net.encoder.stride, net.strides[0]
    low, high = whole.foreground_box().tolist()
    # whole blocks, for what is odd on the encoder's second scale would be padded there, in all of its channels
    first = [max(a - _MARGIN, 0) // block * block for a in low]
    wanted = [-(-(b + _MARGIN + 1 - a) // block) * block for a, b in zip(first, high, strict=True)]
    shape = [min(size, n - a) for a, size, n in zip(first, wanted, grid.shape, strict=True)]
    head = pad_to_multiple(whole.cropped(first, shape).data, block)
    # older releases of torch, which cannot tell, compute in float32
    multiplies = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(multiplies) and image.device.type == "cpu"):
        learned = net.encoder(head).float()
    onto = _coarser(grid, stride, block)
    padding = [
        side
        for a, count, size in zip(reversed(first), reversed(learned.shape[2:]), reversed(onto.shape), strict=True)
        for side in (a // stride, size - a // stride - count)
    ]
    return functional.pad(learned, padding, mode="replicate")


def _at_spacing(grid: Grid, spacing: float) -> Grid:
    """The grid with voxels of `spacing` millimetres, be they coarser or finer."""
    return grid.resized([max(1, round(n * edge / spacing)) for n, edge in zip(grid.shape, grid.spacing, strict=True)])


def _coarser(grid: Grid, stride: int, coarsest: int) -> Grid:
    """The grid of blocks of `stride` voxels along each axis, to whole blocks of `coarsest`, past the end if need be."""
    shape = [-(-size // coarsest) * coarsest for size in grid.shape]
    return grid.cropped([0] * grid.dims, shape).resized([size // stride for size in shape])
