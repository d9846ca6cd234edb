"""What does each operator cost, beside what one would write instead, and beside the bytes it has to move?

    python benchmarks/ops.py [--device auto|cpu|cuda] [--quick] [--sweep] [--only REGEX] [--threads 2] [--output FILE]
        [--return-memory]

Prints a table and writes JSON, and a plot where matplotlib is installed, to benchmarks/results/DEVICE.json and .png;
benchmarks/tables.py puts the JSON into README.md.
The baseline is plain torch, and MONAI and torchdeq where they are installed: a line for each. Times are medians; ours
and theirs are taken in turn, so that other load on the machine meets both. `MB` is what has to be read and written
once; `share` is those bytes over our time, relative to the bandwidth of a large copy measured in the same run;
`MB peak` is what a call allocates at its peak beyond its inputs.

Freed memory stays with the process, ours and theirs, as PyTorch's own allocator keeps that of a GPU: the C library
would give large blocks back to the system, and a call would be timed with the clearing of its pages, on a virtual
machine that hands them on to its host with much more. With --return-memory it gives them back.

With --sweep it looks for sizes at which an operator is slower than its baseline: 8^3 to 256^3, 1 to 64 channels, to
DEVICE-sweep.json.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import itertools
import json
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deqreg import _C, ops
from deqreg.equilibrium.solvers import Anderson
from deqreg.equilibrium.state import AndersonState

RESULTS = Path(__file__).parent / "results"
FULL = (160, 192, 224)


@dataclass(frozen=True)
class Peer:
    """What another library has: a call, and how many of ours it stands for."""

    call: Callable[[], Any]
    steps: int = 1


@dataclass(frozen=True)
class Problem:
    """One operator on one input: how we do it, how others do, and the fewest bytes that have to move."""

    operator: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    peers: dict[str, Peer] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the table; times in seconds, memory in bytes."""

    operator: str
    shape: tuple[int, ...]
    dtype: str
    seconds: float
    baseline: str
    baseline_seconds: float
    ratio: float
    bytes: int
    share: float
    memory: int
    baseline_memory: int


# What one would write in plain torch.


def identity_grid(shape: tuple[int, ...], like: Tensor) -> Tensor:
    axes = [torch.arange(n, dtype=torch.float32, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def torch_warp(image: Tensor, u: Tensor) -> Tensor:
    """Identity grid, normalisation to [-1, 1], axes reversed, grid_sample."""
    shape = u.shape[2:]
    position = identity_grid(shape, u) + u
    scale = [2 / (n - 1) for n in shape]
    normalised = [position[:, a] * scale[a] - 1 for a in range(len(shape))]
    grid = torch.stack(normalised[::-1], dim=-1).to(image.dtype)
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=True)


def torch_gaussian(image: Tensor, sigma: float) -> Tensor:
    """One convolution an axis, channels as samples."""
    radius = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=image.device) / sigma) ** 2).to(image)
    return box_like(image.flatten(0, 1)[:, None], taps / taps.sum()).view_as(image)


def box_like(image: Tensor, taps: Tensor) -> Tensor:
    """The same taps along every axis of an image with one channel."""
    for axis in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[axis + 2], padding[axis] = len(taps), len(taps) // 2
        image = functional.conv3d(image, taps.view(shape), padding=padding)
    return image


def torch_lncc(fixed: Tensor, warped: Tensor, window: int) -> Tensor:
    """Five box sums, separable, as VoxelMorph and MONAI have them."""
    ones, count = torch.ones(window, device=fixed.device, dtype=fixed.dtype), window**3
    sums = [box_like(x, ones) / count for x in (fixed, warped, fixed * fixed, warped * warped, fixed * warped)]
    covariance = sums[4] - sums[0] * sums[1]
    return (covariance**2 / ((sums[2] - sums[0] ** 2) * (sums[3] - sums[1] ** 2) + 1e-5)).mean()


def torch_correlation(fixed: Tensor, moving: Tensor, u: Tensor | None, radius: int) -> Tensor:
    """A product and a sum a shift, of slices of a padded image, or of a warp each."""
    shape, width, products = fixed.shape[2:], 2 * radius + 1, []
    padded = functional.pad(moving, [radius] * 6, mode="replicate") if u is None else moving
    for delta in itertools.product(range(width), repeat=3):
        if u is None:
            image = padded[(..., *(slice(k, k + n) for k, n in zip(delta, shape, strict=True)))]
        else:
            image = torch_warp(moving, u + (u.new_tensor(delta) - radius).view(1, 3, 1, 1, 1))
        products.append((fixed * image).sum(1))
    return torch.stack(products, dim=1) / math.sqrt(fixed.shape[1])


def torch_exponential(velocity: Tensor, steps: int) -> Tensor:
    """Scale, then warp the field by itself and add."""
    u = velocity / 2**steps
    for _ in range(steps):
        u = u + torch_warp(u, u)
    return u


def torch_jacobian_determinant(u: Tensor) -> Tensor:
    columns = torch.stack([torch.stack(torch.gradient(u[:, a], dim=(1, 2, 3)), dim=-1) for a in range(3)], dim=-2)
    return torch.linalg.det(columns + torch.eye(3, device=u.device))


class TorchAnderson:
    """A step of Anderson's as torchdeq and the original DEQ code have it: rings, a batched Gram matrix, a solve."""

    def __init__(self, z: Tensor, memory: int) -> None:
        batch, elements = z.shape[0], z[0].numel()
        self.memory = memory
        self.states = z.new_zeros(batch, memory, elements)
        self.values = z.new_zeros(batch, memory, elements)
        self.system = z.new_zeros(batch, memory + 1, memory + 1)
        self.system[:, 0, 1:] = self.system[:, 1:, 0] = 1
        self.right = z.new_zeros(batch, memory + 1, 1)
        self.right[:, 0] = 1
        self.step = 0

    def advance(self, z: Tensor, value: Tensor) -> Tensor:
        slot, count = self.step % self.memory, min(self.step + 1, self.memory)
        self.states[:, slot], self.values[:, slot] = z.flatten(1), value.flatten(1)
        residuals = self.values[:, :count] - self.states[:, :count]
        gram = torch.bmm(residuals, residuals.mT) + 1e-4 * torch.eye(count, device=z.device)
        self.system[:, 1 : count + 1, 1 : count + 1] = gram
        weights = torch.linalg.solve(self.system[:, : count + 1, : count + 1], self.right[:, : count + 1])[:, 1:, 0]
        self.step += 1
        return torch.bmm(weights[:, None], self.values[:, :count]).view_as(z)


# What others have.


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def monai_warp(image: Tensor, u: Tensor) -> dict[str, Peer]:
    if not installed("monai"):
        return {}
    from monai.networks.blocks.warp import Warp  # pyright: ignore[reportMissingImports]

    layer = Warp(padding_mode="border")
    return {"monai": Peer(lambda: layer(image, u))}


def monai_exponential(velocity: Tensor, steps: int) -> dict[str, Peer]:
    if not installed("monai"):
        return {}
    from monai.networks.blocks.warp import DVF2DDF  # pyright: ignore[reportMissingImports]

    layer = DVF2DDF(num_steps=steps, padding_mode="border")
    return {"monai": Peer(lambda: layer(velocity))}


def monai_lncc(fixed: Tensor, warped: Tensor, window: int) -> dict[str, Peer]:
    if not installed("monai"):
        return {}
    from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss  # pyright: ignore[reportMissingImports]

    loss = LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=window)
    return {"monai": Peer(differentiated(loss, warped, fixed))}


def torchdeq_anderson(z: Tensor, values: Iterator[Tensor], memory: int) -> dict[str, Peer]:
    """Its whole solver on a map that costs nothing, where the first `memory` of its steps have less to mix."""
    if not installed("torchdeq"):
        return {}
    from torchdeq.solver import get_solver  # pyright: ignore[reportMissingImports]

    solve, steps = get_solver("anderson"), 4 * memory
    call = lambda: solve(lambda _: next(values).flatten(1), z, max_iter=steps, tol=0.0, m=memory)  # noqa: E731
    return {"torchdeq": Peer(call, steps)}


# Problems, an operator a function.


def normal(*shape: int, dtype: torch.dtype, device: str, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=device) * scale).to(dtype)


def smooth_field(shape: tuple[int, ...], device: str, voxels: float = 3.0) -> Tensor:
    """A displacement as registrations have them: some voxels long, smooth over tens of voxels."""
    coarse = torch.randn(1, 3, *(n // 16 + 2 for n in shape), device=device) * voxels
    return functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)


def differentiated(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Any]:
    """Forward, and the gradient by every input that requires one."""
    wanted = [t for t in inputs if t.requires_grad]
    return lambda: torch.autograd.grad(function(*inputs).sum(), wanted)


def warp_forward(shape: tuple[int, ...], device: str, dtype: torch.dtype, channels: int) -> Problem:
    image, u = normal(1, channels, *shape, dtype=dtype, device=device), smooth_field(shape, device)
    moved = 2 * image.nbytes + u.nbytes
    name = f"warp C={channels}"
    ours, theirs = lambda: ops.warp(image, u), lambda: torch_warp(image, u)
    return Problem(name, shape, dtype, moved, ours, theirs, monai_warp(image, u) if dtype == u.dtype else {})


def warp_to_displacement(shape: tuple[int, ...], device: str, dtype: torch.dtype, channels: int) -> Problem:
    image, u = normal(1, channels, *shape, dtype=dtype, device=device), smooth_field(shape, device).requires_grad_()
    values = torch.ones_like(image)
    moved = 2 * image.nbytes + 2 * u.nbytes

    def theirs() -> Any:
        return torch.autograd.grad(torch_warp(image, u), u, values)

    name = f"warp gradient to u C={channels}"
    return Problem(name, shape, dtype, moved, lambda: ops.warp_gradient(image, u.detach(), values), theirs)


def warp_to_image(
    shape: tuple[int, ...], device: str, dtype: torch.dtype, channels: int, deterministic: bool = False
) -> Problem:
    values, u = normal(1, channels, *shape, dtype=dtype, device=device), smooth_field(shape, device)
    image = torch.zeros_like(values, requires_grad=True)

    def ours() -> Tensor:
        torch.use_deterministic_algorithms(deterministic)
        try:
            return ops.splat(values, u, shape)
        finally:
            torch.use_deterministic_algorithms(False)

    def theirs() -> Any:
        return torch.autograd.grad(torch_warp(image, u), image, values)

    name = f"splat C={channels}" + (" deterministic" if deterministic else "")
    return Problem(name, shape, dtype, 2 * values.nbytes + u.nbytes, ours, theirs)


def warp_all(shape: tuple[int, ...], device: str, dtype: torch.dtype, channels: int) -> Problem:
    image = normal(1, channels, *shape, dtype=dtype, device=device).requires_grad_()
    u = smooth_field(shape, device).requires_grad_()
    # forward, and both gradients with one reading of the displacement and of the values
    moved = (2 * image.nbytes + u.nbytes) + (3 * image.nbytes + 2 * u.nbytes)
    values = normal(1, channels, *shape, dtype=dtype, device=device)

    def through(function: Callable[..., Tensor]) -> Any:
        return torch.autograd.grad(function(image, u), (image, u), values)

    name = f"warp + both gradients C={channels}"
    return Problem(name, shape, dtype, moved, lambda: through(ops.warp), lambda: through(torch_warp))


def compose(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Problem:
    outer, inner = smooth_field(shape, device).to(dtype), smooth_field(shape, device).to(dtype)
    moved = 3 * outer.nbytes
    ours, theirs = lambda: ops.compose(outer, inner), lambda: inner + torch_warp(outer, inner)
    return Problem("compose", shape, dtype, moved, ours, theirs)


def exponential(shape: tuple[int, ...], device: str, dtype: torch.dtype, steps: int = 7) -> Problem:
    velocity = smooth_field(shape, device).to(dtype)
    ours, theirs = lambda: ops.exponential(velocity, steps), lambda: torch_exponential(velocity, steps)
    moved, peers = 2 * steps * velocity.nbytes, monai_exponential(velocity, steps)
    return Problem(f"exponential {steps} steps", shape, dtype, moved, ours, theirs, peers)


def gaussian(shape: tuple[int, ...], device: str, dtype: torch.dtype, sigma: float, channels: int = 3) -> Problem:
    image = normal(1, channels, *shape, dtype=dtype, device=device)
    ours, theirs = lambda: ops.gaussian(image, sigma), lambda: torch_gaussian(image, sigma)
    return Problem(f"gaussian sigma={sigma:g} C={channels}", shape, dtype, 2 * image.nbytes, ours, theirs)


def correlation(
    shape: tuple[int, ...], device: str, dtype: torch.dtype, radius: int, channels: int, *, displaced: bool = False
) -> Problem:
    fixed, moving = (normal(1, channels, *shape, dtype=dtype, device=device) for _ in range(2))
    u = smooth_field(shape, device) if displaced else None
    moved = 2 * fixed.nbytes + (2 * radius + 1) ** 3 * fixed.nbytes // channels + (0 if u is None else u.nbytes)
    name = f"correlation r={radius} C={channels}" + (" displaced" if displaced else "")
    ours, theirs = (
        lambda: ops.correlation(fixed, moving, u, radius=radius),
        lambda: torch_correlation(fixed, moving, u, radius),
    )
    return Problem(name, shape, dtype, moved, ours, theirs)


def correlation_gradients(
    shape: tuple[int, ...], device: str, dtype: torch.dtype, radius: int, channels: int, *, displaced: bool = False
) -> Problem:
    """Forward and every gradient."""
    inputs = [normal(1, channels, *shape, dtype=dtype, device=device).requires_grad_() for _ in range(2)]
    if displaced:
        inputs.append(smooth_field(shape, device).requires_grad_())
    grad = normal(1, (2 * radius + 1) ** 3, *shape, dtype=dtype, device=device)

    def through(function: Callable[..., Tensor]) -> Any:
        return torch.autograd.grad(function(inputs[0], inputs[1], inputs[2] if displaced else None), inputs, grad)

    # the features are read twice and their gradients written, the volume of correlations written and its cotangent read
    moved = 6 * inputs[0].nbytes + 2 * grad.nbytes + (3 * inputs[2].nbytes if displaced else 0)
    name = f"correlation r={radius} C={channels} + gradients" + (" displaced" if displaced else "")
    ours, theirs = (
        lambda: through(lambda f, m, u: ops.correlation(f, m, u, radius=radius)),
        lambda: through(lambda f, m, u: torch_correlation(f, m, u, radius)),
    )
    return Problem(name, shape, dtype, moved, ours, theirs)


def correlation_projection(
    shape: tuple[int, ...],
    device: str,
    dtype: torch.dtype,
    radius: int,
    channels: int,
    *,
    displaced: bool = False,
    outputs: int = 16,
) -> Problem:
    """What a convolution of single voxels makes of a correlation; our own correlation before one is a baseline too."""
    fixed, moving = (normal(1, channels, *shape, dtype=dtype, device=device) for _ in range(2))
    u = smooth_field(shape, device) if displaced else None
    weight = normal(outputs, (2 * radius + 1) ** 3, dtype=dtype, device=device)
    moved = 2 * fixed.nbytes + outputs * fixed.nbytes // channels + (0 if u is None else u.nbytes)

    def project(volume: Tensor) -> Tensor:
        return (weight @ volume.flatten(2)).unflatten(2, shape)

    name = f"correlation projection r={radius} C={channels} O={outputs}" + (" displaced" if displaced else "")
    return Problem(
        name, shape, dtype, moved,
        lambda: ops.correlation_projection(fixed, moving, u, weight, radius=radius),
        lambda: project(torch_correlation(fixed, moving, u, radius)),
        {"in two": Peer(lambda: project(ops.correlation(fixed, moving, u, radius=radius)))},
    )  # fmt: skip


def jacobian_determinant(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Problem:
    u = smooth_field(shape, device).to(dtype)
    ours, theirs = lambda: ops.jacobian_determinant(u), lambda: torch_jacobian_determinant(u)
    return Problem("jacobian determinant", shape, dtype, u.nbytes + u.nbytes // 3, ours, theirs)


def lncc(shape: tuple[int, ...], device: str, dtype: torch.dtype, window: int) -> Problem:
    fixed = torch.rand(1, 1, *shape, device=device).to(dtype)
    warped = torch.rand(1, 1, *shape, device=device).to(dtype).requires_grad_()
    ours = differentiated(lambda f, w: ops.lncc(f, w, window=window), fixed, warped)
    theirs = differentiated(lambda f, w: torch_lncc(f, w, window), fixed, warped)
    # the two images in, the gradient out
    name, peers = f"lncc window={window} + gradient", monai_lncc(fixed, warped, window)
    return Problem(name, shape, dtype, 3 * fixed.nbytes, ours, theirs, peers)


def anderson(shape: tuple[int, ...], device: str, dtype: torch.dtype, memory: int) -> Problem:
    """One step with a full ring, on values that keep it from converging."""
    z = normal(1, 3, *shape, dtype=dtype, device=device)
    pool = [normal(1, 3, *shape, dtype=dtype, device=device) for _ in range(memory + 1)]
    # a cycle each: a history with one value twice would be singular
    values, their_values, peer_values = (itertools.cycle(pool) for _ in range(3))
    solver = Anderson(memory=memory, tol=1e-30, max_steps=10**6, growth=1e30, divergence=1e30, patience=None)
    state, baseline = AndersonState((z,), solver), TorchAnderson(z, memory)
    for _ in range(memory):
        state.advance((next(values),))
        baseline.advance(z, next(their_values))
    moved = (2 * memory + 3) * z.nbytes
    name = f"anderson step m={memory}"
    ours, theirs = lambda: state.advance((next(values),)), lambda: baseline.advance(z, next(their_values))
    return Problem(name, shape, dtype, moved, ours, theirs, torchdeq_anderson(z, peer_values, memory))


def problems(device: str, quick: bool) -> Iterator[Callable[[], Problem]]:
    """Problems to be made one at a time: their inputs together would not fit a small machine."""
    shape = tuple(n // 2 for n in FULL) if quick else FULL
    on_gpu = device == "cuda"
    single = torch.float32
    many = [1, 16, 32] if on_gpu else [1, 16]
    for channels in many:
        yield lambda c=channels: warp_forward(shape, device, single, c)
    for channels in many:
        yield lambda c=channels: warp_to_displacement(shape, device, single, c)
    for channels in many:
        yield lambda c=channels: warp_to_image(shape, device, single, c)
    if on_gpu:
        yield lambda: warp_to_image(shape, device, single, 1, deterministic=True)
        for dtype in (torch.float16, torch.bfloat16):
            yield lambda d=dtype: warp_forward(shape, device, d, 32)
    yield lambda: warp_all(shape, device, single, 1)
    yield lambda: compose(shape, device, single)
    yield lambda: exponential(shape, device, single)
    for sigma in (0.5, 2.0):
        yield lambda s=sigma: gaussian(shape, device, single, s)
    yield lambda: jacobian_determinant(shape, device, single)
    yield lambda: anderson(shape if on_gpu else (96, 112, 96), device, single, 5 if on_gpu else 6)
    for window in (5, 9):
        yield lambda w=window: lncc(shape, device, single, w)
    half = tuple(n // 2 for n in shape)  # where networks compare features
    for radius in (1, 2, 3):
        yield lambda r=radius: correlation(half, device, single, r, 32)
    yield lambda: correlation_gradients(half, device, single, 1, 32)
    yield lambda: correlation_projection(half, device, single, 1, 32)
    # the learned update's, on the level where it takes most of its steps
    yield lambda: correlation_projection((44, 52, 44), device, single, 1, 18, displaced=True)
    if on_gpu:  # hundreds of warps in plain torch take a CPU minutes
        yield lambda: correlation_projection(half, device, single, 1, 32, displaced=True)
        for radius in (1, 2, 3):
            yield lambda r=radius: correlation(half, device, single, r, 32, displaced=True)
        yield lambda: correlation_gradients(half, device, single, 1, 32, displaced=True)


def sweep(device: str) -> Iterator[Callable[[], Problem]]:
    """Operators at sizes from smaller than a thread's share to larger than any cache."""
    most = 1 << 25  # elements of an image
    single = torch.float32
    for n in (8, 16, 32, 64, 128, 256):
        shape = (n, n, n)
        for channels in (c for c in (1, 4, 16, 64) if c * n**3 <= most):
            yield lambda s=shape, c=channels: warp_forward(s, device, single, c)
            yield lambda s=shape, c=channels: warp_to_displacement(s, device, single, c)
            yield lambda s=shape, c=channels: warp_to_image(s, device, single, c)
            yield lambda s=shape, c=channels: gaussian(s, device, single, 1.5, c)
            if n <= 128:
                yield lambda s=shape, c=channels: correlation(s, device, single, 1, c)
                yield lambda s=shape, c=channels: correlation_projection(s, device, single, 1, c)
        yield lambda s=shape: compose(s, device, single)
        yield lambda s=shape: exponential(s, device, single)
        yield lambda s=shape: jacobian_determinant(s, device, single)
        yield lambda s=shape: lncc(s, device, single, 9)
        if n <= 128:
            yield lambda s=shape: anderson(s, device, single, 5)


# Measuring.


def seconds_of(call: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def times(calls: list[Callable[[], Any]], device: str, budget: float) -> list[float]:
    """The median time of each call, taken in turn for about `budget` seconds.

    Three times at least; twice where a turn takes longer than the budget twice over, as hundreds of shifts in plain
    torch do.
    """
    start = time.perf_counter()
    for call in calls:
        call()
    least = 3 if time.perf_counter() - start < 2 * budget else 2
    samples: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while len(samples[0]) < least or (time.perf_counter() - start < budget and len(samples[0]) < 100):
        for call, taken in zip(calls, samples, strict=True):
            taken.append(seconds_of(call, device))
    return [statistics.median(taken) for taken in samples]


def keep_memory() -> bool:
    """Whether the C library now keeps what is freed; only GNU's does as it is told."""
    mmap_max, trim_threshold, largest = -4, -1, -1  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, largest))


def status_bytes(field: str) -> int:
    """A field of this process's memory status, where the system has one."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def peak_memory(call: Callable[[], Any], device: str) -> int:
    """Bytes a call holds at its peak beyond what was held before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or the call would be served from pages that earlier ones left behind
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except (OSError, AttributeError):
        return 0
    before = status_bytes("VmRSS")
    call()
    return max(status_bytes("VmHWM") - before, 0)


def copy_bandwidth(device: str, quick: bool) -> float:
    """Bytes a second, reading and writing, of a copy too large for any cache."""
    elements = (1 << 26) if device == "cpu" or quick else (1 << 29)
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / times([lambda: target.copy_(source)], device, 1.0)[0]


def measure(problem: Problem, device: str, bandwidth: float, budget: float) -> list[Row]:
    """A row for each baseline."""
    peers = {"torch": Peer(problem.theirs), **problem.peers}
    calls = [problem.ours, *(peer.call for peer in peers.values())]
    taken, memory = times(calls, device, budget), [peak_memory(call, device) for call in calls]
    rows = []
    for (name, peer), seconds, peak in zip(peers.items(), taken[1:], memory[1:], strict=True):
        baseline = seconds / peer.steps
        rows.append(
            Row(
                problem.operator,
                problem.shape,
                str(problem.dtype).removeprefix("torch."),
                taken[0],
                name,
                baseline,
                baseline / taken[0],
                problem.bytes,
                problem.bytes / taken[0] / bandwidth,
                memory[0],
                peak,
            )
        )
    return rows


def device_name(device: str) -> str:
    """The GPU's, or the processor's and the instruction set in use: one name sells processors of several."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {_C.instruction_set()}"


HEADER = (
    f"{'operator':<48}{'shape':<13}{'dtype':<9}{'ms':>9}  {'baseline':<9}{'its ms':>9}{'ratio':>7}{'MB':>7}{'share':>7}"
    f"{'MB peak':>9}{'its':>7}"
)


def package_version() -> str:
    """Of the installed package; a working tree that was only built in place has none."""
    try:
        return version("deqreg")
    except PackageNotFoundError:
        return "not installed"


def line(row: Row) -> str:
    return (
        f"{row.operator:<48}{'x'.join(map(str, row.shape)):<13}{row.dtype:<9}{row.seconds * 1e3:>9.3f}"
        f"  {row.baseline:<9}{row.baseline_seconds * 1e3:>9.3f}{row.ratio:>6.1f}x{row.bytes / 1e6:>7.0f}"
        f"{row.share:>7.0%}{row.memory / 1e6:>9.0f}{row.baseline_memory / 1e6:>7.0f}"
    )


def to_json(result: dict[str, Any]) -> str:
    """The result with a row a line and four figures a number, small enough to keep every run of."""
    rows = [
        {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
        for row in result["rows"]
    ]
    head = json.dumps({**result, "rows": []}, indent=1)
    return (
        head.replace('"rows": []', '"rows": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]") + "\n"
    )


def plot(result: dict[str, Any], path: Path) -> None:
    """Bandwidth reached over bytes moved, under the roof that a copy sets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    rows = list({(row["operator"], *row["shape"]): row for row in result["rows"]}.values())
    axes.axhline(result["copy_bytes_per_second"] / 1e9, color="black", linewidth=1, label="copy")
    for row in rows:
        moved, reached = row["bytes"] / 1e6, row["bytes"] / row["seconds"] / 1e9
        axes.plot(moved, reached, "o", color="tab:blue", markersize=4)
        axes.annotate(row["operator"], (moved, reached), textcoords="offset points", xytext=(5, 2), fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel="bytes that have to move, MB", ylabel="over our time, GB/s")
    axes.set_title(f"{result['device']}, {result['threads']} threads", fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(device: str, quick: bool, sweeping: bool, only: str, budget: float, kept: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(device, quick)
    print(f"{device_name(device)}, torch {torch.__version__}, copy {bandwidth / 1e9:.1f} GB/s\n{HEADER}", flush=True)
    rows, start = [], time.perf_counter()
    makers = list(sweep(device) if sweeping else problems(device, quick))
    for number, make in enumerate(makers, 1):
        problem = make()
        if re.search(only, problem.operator):
            print(f"{number}/{len(makers)}, {time.perf_counter() - start:.0f} s", end="\r", file=sys.stderr, flush=True)
            rows.extend(found := measure(problem, device, bandwidth, budget))
            print(*map(line, found), sep="\n", flush=True)
        del problem
        gc.collect()
    slower = [row for row in rows if row.ratio < 1]
    print(f"{len(rows)} comparisons, {len(slower)} lost", *map(line, slower), sep="\n")
    return {
        "kind": "sweep" if sweeping else "operators",
        "backend": device,
        "device": device_name(device),
        "torch": torch.__version__,
        "peers": {name: version(name) for name in ("monai", "torchdeq") if installed(name)},
        "deqreg": package_version(),
        "threads": torch.get_num_threads(),
        "quick": quick,
        "memory": "kept" if kept else "returned",
        "copy_bytes_per_second": bandwidth,
        "rows": [asdict(row) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--quick", action="store_true", help="half the size along every axis, and shorter timing")
    parser.add_argument("--sweep", action="store_true", help="many sizes and channels instead of the large volume")
    parser.add_argument("--only", default="", help="operators whose name has a match of this expression")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--return-memory", action="store_true", help="give freed memory back to the system")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/DEVICE.json)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    budget = 0.1 if args.sweep else 0.3 if args.quick else 2.0
    kept = device == "cuda" or (not args.return_memory and keep_memory())
    result = run(device, args.quick, args.sweep, args.only, budget, kept)
    name = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-") + ("-sweep" if args.sweep else "")
    output = args.output or RESULTS / f"{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(to_json(result))
    print(f"written to {output}")
    if installed("matplotlib") and not args.sweep and result["rows"]:
        plot(result, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
