"""Pair in, registration out: read, scale, align, deform level by level to equilibrium, resample once."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deqreg import io, ops
from deqreg.io import DisplacementField, Volume
from deqreg.io.volumes import Source
from deqreg.learned import Features, solve_learned
from deqreg.levels import compares_structure, level_shapes, solve_level
from deqreg.nets import VariationalUpdate
from deqreg.presets import PRESETS, Level, Preset, read_preset
from deqreg.registration import LevelReport, Progress, Registration
from deqreg.spatial import (
    Grid,
    Image,
    align,
    background,
    contrast_is_reversed,
    level_shape,
    match_contrast,
    pull,
    reached,
    resample,
    resize,
    resize_displacement,
    resize_mask,
    scale_intensities,
    self_similarity,
)
from deqreg.symmetric import half_way_grid, meet, square_root
from deqreg.transforms import grid_of, join, split

METHODS = ("variational", "equilibrium")
CONTRASTS = ("auto", "same", "other")
Callback = Callable[[Progress], None]
Landmarks = str | os.PathLike[str] | Tensor

# The field reaches so many of the fixed image's finest voxels past what there is to align: it has room to fade.
_BORDER = 8
# Smooths the kinks that linear interpolation leaves between the field's voxels, in voxels of the fixed image. Between
# brains the spread of the log-Jacobian falls by 2 % and Dice by nothing.
_ROUNDING = 0.5
# What a level holds at its peak, in float32 volumes: of the fixed image's size that one, the warped one, its gradient,
# and field and force there; of the field's size what the solver keeps, beside its history. The moving one has its own.
_IMAGE_VOLUMES, _FIELD_COPIES = 12, 6


@dataclass(frozen=True, eq=False)
class _Pair:
    """All that came in, read and checked."""

    fixed: Volume
    moving: Volume
    fixed_mask: Volume | None
    moving_mask: Volume | None
    fixed_labels: Volume | None
    moving_labels: Volume | None
    fixed_landmarks: Tensor | None
    moving_landmarks: Tensor | None

    def __post_init__(self) -> None:
        if self.fixed.dimensions != self.moving.dimensions:
            raise ValueError(
                f"{self.moving.name}: must be {self.fixed.dimensions}-D like {self.fixed.name}, "
                f"got {self.moving.dimensions}-D"
            )


@dataclass(eq=False)
class _Clock:
    """Wall seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def register(
    fixed: Source | Tensor,
    moving: Source | Tensor,
    *,
    preset: str | os.PathLike[str] | Preset = "auto",
    method: str = "variational",
    refine: bool = False,
    symmetric: bool = False,
    contrast: str = "auto",
    fixed_mask: Source | Tensor | None = None,
    moving_mask: Source | Tensor | None = None,
    fixed_labels: Source | Tensor | None = None,
    moving_labels: Source | Tensor | None = None,
    fixed_landmarks: Landmarks | None = None,
    moving_landmarks: Landmarks | None = None,
    use_landmarks: bool = False,
    initial: str | os.PathLike[str] | np.ndarray | Tensor = "auto",
    device: str = "auto",
    memory_budget: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
    progress: Callback | None = None,
) -> Registration:
    """Find the transform that brings one image onto another.

    An affine alignment, then a deformation: the equilibrium `u* = f(u*)` of the classical update on each level of a
    pyramid, coarse to fine. On as many of the coarsest levels as the preset says both images move, and meet half-way.

    Args:
        fixed: the image that stays: a path, a nibabel image, a `deqreg.io.Volume`, or a `[X, Y, Z]` or `[X, Y]`
            tensor of 1 mm voxels.
        moving: the image that is moved.
        preset: `"auto"` chooses by the images; `"brain"`, `"lung"` or `"generic"`; a TOML file of one's own, or a
            `deqreg.presets.Preset`.
        method: `"variational"`, the classical update, or `"equilibrium"`, a learned one, for which there must be
            weights in the preset.
        refine: go on from the learned field with the classical update.
        symmetric: let the images meet half-way, so that neither decides, and give the inverse too. Takes about twice as
            long.
        contrast: `"same"` compares the images as they are; `"other"`, for T1 with T2 or FLAIR, first gives moving the
            contrast of fixed; `"auto"` does so where bright in one image is dark in the other.
        fixed_mask, moving_mask: where to look, on the grid of their image; above zero is inside. With one of the
            two, what lies outside of it has no part in the similarity. With both, what lies outside of either is made
            flat, so that their rims, those of lungs for instance, are brought together. The learned update sees
            nothing outside of a mask, as around a skull-stripped head.
        fixed_labels, moving_labels: segmentations. Moving labels are warped along; both give Dice. Not used to
            register.
        fixed_landmarks, moving_landmarks: CSV files or `[P, d]` tensors, RAS millimetres, for the error. Not used to
            register unless `use_landmarks`.
        use_landmarks: let the landmarks pull beside the images; their error is then no measure of accuracy.
        initial: `"auto"` aligns affinely first; `"identity"` starts from the images as they lie in the world; or an ITK
            transform's path, or a `[d + 1, d + 1]` matrix from fixed to moving points, RAS millimetres.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        memory_budget: bytes that a level of the classical update may take; finer ones are left out. Reading, the
            learned level and resampling are not bounded by it.
        seed: of torch's random numbers.
        deterministic: ask torch for deterministic algorithms. On the CPU results are the same bits either way.
        progress: called along the way.

    Returns:
        The transform, the warped image and how it went.

    Raises:
        ValueError: when an input is not what it has to be; one line that says what would be right.

    >>> import torch
    >>> from deqreg import ops, register
    >>> image = ops.gaussian(torch.rand(1, 1, 24, 24, 24), 2.0)[0, 0]
    >>> registration = register(image, image, initial="identity")
    >>> bool(registration.displacement.abs().max() < 0.05)
    True
    """
    clock, started = _Clock(), time.perf_counter()
    asked = preset if isinstance(preset, Preset) or preset == "auto" else read_preset(preset)
    _check_choices(method, device, contrast, refine, symmetric)
    _check_masks(symmetric, fixed_mask is not None, moving_mask is not None)
    _check_landmarks(use_landmarks, fixed_landmarks is not None, method, refine, symmetric)
    # the caller's random numbers go on as they were
    with (
        warnings.catch_warnings(record=True) as caught,
        _deterministic(deterministic),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.filterwarnings("always", module=r"deqreg\.")  # the user's filters decide about those of others
        torch.default_generator.manual_seed(seed)
        with clock.stage("read"):
            pair = _read(
                fixed, moving, fixed_mask, moving_mask, fixed_labels, moving_labels, fixed_landmarks, moving_landmarks
            )
            start = _read_initial(initial, pair)
            chosen = asked if isinstance(asked, Preset) else _choose_preset(pair)
            if refine and chosen.refinement is not None:
                chosen = replace(chosen, levels=chosen.refinement)
            weights = _weights(chosen) if method == "equilibrium" else None
            where = _device(device)
            both = pair.fixed_mask is not None and pair.moving_mask is not None
            images = (
                _scaled(pair.fixed, pair.fixed_mask, where, flat=both),
                _scaled(pair.moving, pair.moving_mask, where, flat=both),
            )
        with clock.stage("affine"):
            world, displacement = _initial(images, start, chosen, symmetric, progress)
            if contrast == "auto":
                contrast = "other" if contrast_is_reversed(*images, world) else "same"
            if contrast == "other":
                images = images[0], match_contrast(*images, world)
        levels: list[LevelReport] = []
        marks = _marks(pair, world) if use_landmarks else None
        first, inner = _domain(*images, world)
        displacement = _inside(displacement, first, inner.grid.shape)
        border = _BORDER * min(images[0].grid.spacing)
        half_way = 0
        if symmetric or (weights is None and _both_may_move(pair, start, world, marks)):
            half_way = len(chosen.levels) if symmetric else chosen.half_way
        if memory_budget is not None and (weights is None or refine):
            met = half_way_grid(images, square_root(world), border) if half_way else inner.grid
            chosen = _fit_budget(chosen, inner.grid, met, half_way, images[1].grid, memory_budget)
        half_way = min(half_way, len(chosen.levels))
        features = None
        if weights is not None:
            with clock.stage("learned"):
                displacement, report, features = solve_learned(
                    (inner, images[1]), world, displacement, weights, chosen.method.similarity, _ROUNDING, progress,
                    coarse=refine,
                )  # fmt: skip
                levels.append(report)
        # refined from the coarsest level again: what the learned features pull at there, the field has to have room for
        classical = () if weights is not None and not refine else chosen.levels
        meeting = None
        if half_way:
            with clock.stage("half-way"):
                known = displacement, inner.grid.resized(displacement.shape[2:])
                meeting = meet(images, world, known, features, chosen, half_way, border, _ROUNDING, progress)
                levels += meeting.levels
                met = inner.grid.resized(level_shapes(inner.grid, chosen.levels[half_way - 1], chosen)[0])
                displacement = meeting.displacement(images[0].grid if symmetric else met)
        for number, level in enumerate(classical[half_way:], half_way + 1):
            with clock.stage(f"level {number}"):
                label = f"level {number}/{len(classical)}"
                displacement, report = _solve_level(
                    (inner, images[1]), world, displacement, level, chosen, label, progress, features, marks
                )
                levels.append(report)
        with clock.stage("resample"):
            if not symmetric:
                displacement = _extended(displacement, first, inner.grid.shape, images[0].grid.shape)
            outputs = _resample(pair, images, world, displacement, chosen)
            if symmetric and meeting is not None:
                inverse = meeting.inverse(images[1].grid)
                outputs |= _inverse(images, world, displacement, inverse, outputs["displacement"], outputs["reached"])
    clock.seconds["total"] = time.perf_counter() - started
    settings = {
        "preset": asdict(chosen),
        "method": method,
        "refine": refine,
        "symmetric": symmetric,
        "half_way": half_way,
        "use_landmarks": use_landmarks,
        "contrast": contrast,
        "initial": str(initial),
        "device": str(where),
        "seed": seed,
        "deterministic": deterministic,
        "memory_budget": memory_budget,
    }
    done = levels[-1].status == "converged"
    return Registration(
        **{f.name: getattr(pair, f.name) for f in pair.__dataclass_fields__.values()},
        **outputs,
        affine=world.numpy(),
        levels=tuple(levels),
        status="converged" if done else "best effort",
        sentence=f"The finest level: {levels[-1].sentence}",
        seconds=clock.seconds,
        settings=settings,
        warnings=_own(caught),
    )


def _own(caught: list[warnings.WarningMessage]) -> tuple[str, ...]:
    """The sentences of this package's warnings; those of other libraries are shown as ever."""
    here = str(Path(__file__).parent)
    for w in caught:
        if not w.filename.startswith(here):
            warnings.showwarning(w.message, w.category, w.filename, w.lineno)
    return tuple(str(w.message) for w in caught if w.filename.startswith(here))


def _weights(preset: Preset) -> str:
    """The name of the preset's weights."""
    if preset.weights is None:
        trained = ", ".join(name for name in PRESETS if read_preset(name).weights is not None)
        raise ValueError(f"method equilibrium has weights for preset {trained} alone, got preset {preset.name}")
    return preset.weights


def _check_choices(method: str, device: str, contrast: str, refine: bool, symmetric: bool) -> None:
    for name, value, choices in (
        ("method", method, METHODS),
        ("device", device, ("auto", "cpu", "cuda")),
        ("contrast", contrast, CONTRASTS),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if refine and method != "equilibrium":
        raise ValueError(f"refine goes on from the learned field: it needs method equilibrium, got {method}")
    if symmetric and method == "equilibrium" and not refine:
        raise ValueError(
            "symmetric is a way of the classical update: with method equilibrium it needs refine, got none"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU here; use --device cpu, or auto")


def _check_masks(symmetric: bool, fixed: bool, moving: bool) -> None:
    if symmetric and fixed != moving:
        one = "fixed" if fixed else "moving"
        raise ValueError(f"symmetric needs masks of both images or of none, got that of {one} alone")


def _check_landmarks(wanted: bool, given: bool, method: str, refine: bool, symmetric: bool) -> None:
    if wanted and not given:
        raise ValueError("use_landmarks needs landmarks of both images, got none")
    if wanted and (symmetric or (method == "equilibrium" and not refine)):
        raise ValueError(
            "use_landmarks needs the classical update that starts from fixed: not symmetric, and with refine"
        )


def _device(name: str) -> torch.device:
    """`auto` is a GPU where torch sees one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    if not wanted or torch.are_deterministic_algorithms_enabled():
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _as_source(value: Any, role: str) -> Any:
    """A tensor as a volume of 1 mm voxels; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    # NumPy lacks bfloat16, and volumes hold float32 anyway
    floating = value.is_floating_point()
    dtype = np.dtype(np.float32) if floating else torch.empty(0, dtype=value.dtype).numpy().dtype
    return Volume(value.detach().float().cpu(), np.eye(4), dtype, name=role)


def _read(
    fixed: Any, moving: Any, fixed_mask: Any, moving_mask: Any, fixed_labels: Any, moving_labels: Any,
    fixed_landmarks: Landmarks | None, moving_landmarks: Landmarks | None,
) -> _Pair:  # fmt: skip
    def beside(reader: Callable[..., Volume], source: Any, image: Volume, role: str) -> Volume | None:
        return None if source is None else reader(_as_source(source, role), image, role)

    with ThreadPoolExecutor(2) as pool:  # unpacking runs outside of Python
        images = (_as_source(fixed, "fixed image"), _as_source(moving, "moving image"))
        f, m = pool.map(io.read_image, images, ("fixed image", "moving image"))
        beside_them = pool.map(
            beside,
            (io.read_mask, io.read_mask, io.read_labels, io.read_labels),
            (fixed_mask, moving_mask, fixed_labels, moving_labels),
            (f, m, f, m),
            ("fixed mask", "moving mask", "fixed labels", "moving labels"),
        )
        fixed_inside, moving_inside, fixed_parts, moving_parts = beside_them
    if (fixed_landmarks is None) != (moving_landmarks is None):
        raise ValueError("landmarks must be given for both images, got those of one")
    points: tuple[Tensor | None, Tensor | None] = (None, None)
    if fixed_landmarks is not None and moving_landmarks is not None:
        points = io.read_landmark_pair(fixed_landmarks, moving_landmarks, f, m)
    return _Pair(f, m, fixed_inside, moving_inside, fixed_parts, moving_parts, *points)


def _read_initial(initial: Any, pair: _Pair) -> str | np.ndarray | DisplacementField:
    """`"auto"`, or what the deformation starts from."""
    dims = pair.fixed.dimensions
    if isinstance(initial, str) and initial == "auto":
        return initial
    if isinstance(initial, str) and initial == "identity":
        return np.eye(dims + 1)
    if isinstance(initial, (np.ndarray, Tensor)):
        found = np.array(initial.detach().cpu() if isinstance(initial, Tensor) else initial, dtype=np.float64)
    elif isinstance(initial, (str, os.PathLike)):
        found = io.read_transform(initial)
    else:
        raise ValueError(f"initial must be 'auto', 'identity', a path or a matrix, got a {type(initial).__name__}")
    if isinstance(found, np.ndarray) and found.shape != (dims + 1, dims + 1):
        raise ValueError(f"initial must be a [{dims + 1}, {dims + 1}] matrix for these images, got {list(found.shape)}")
    if isinstance(found, np.ndarray) and not np.isfinite(found).all():
        raise ValueError("initial must be a matrix of finite numbers, got NaN or infinite entries")
    if isinstance(found, np.ndarray) and not np.array_equal(found[-1], np.eye(dims + 1)[-1]):
        raise ValueError(f"initial must be homogeneous: its last row is 0, ..., 0, 1, got {found[-1].tolist()}")
    if isinstance(found, np.ndarray) and abs(np.linalg.det(found)) < 1e-6:
        raise ValueError(f"initial must be an invertible matrix, got determinant {np.linalg.det(found):g}")
    if isinstance(found, DisplacementField) and found.displacement.shape[0] != dims:
        raise ValueError(f"initial must be a {dims}-D transform for these images, got {found.displacement.shape[0]}-D")
    return found


def _choose_preset(pair: _Pair) -> Preset:
    """What the images look like: lung for CT with air in it, brain for skull-stripped heads, else generic."""
    data = pair.fixed.data
    if float(data.min()) < -500 and float(pair.moving.data.min()) < -500:  # Hounsfield units reach into air
        return read_preset("lung")
    empty = float((data <= background(data)).float().mean())
    # a skull-stripped head leaves most of its box empty, to the exact same value; at larger voxels than these the folds
    # that the preset is made for are not seen, and the generic one is closer (0.64 mm on the known field, 0.76)
    fine = min(Grid.of(pair.fixed.data.shape, pair.fixed.matrix).spacing) < 1.5
    return read_preset("brain" if data.ndim == 3 and empty > 0.35 and fine else "generic")


def _fit_budget(preset: Preset, inner: Grid, met: Grid, half_way: int, moving: Grid, budget: int) -> Preset:
    """The preset without the levels that would not fit into `budget` bytes.

    The first `half_way` of them are solved on the grid `met`, the others on `inner`.
    """
    fields = _FIELD_COPIES + 2 * preset.memory
    if preset.self_similarity:  # 2 d (d - 1) channels of two images, d of which are a field
        fields += 4 * (inner.dims - 1)

    def needed(level: Level) -> int:
        halves = level in preset.levels[:half_way]
        grid = met if halves else inner
        shape, field_shape = level_shapes(grid, level, preset)
        pulled = level_shape(moving, min(grid.spacing) * level.factor)
        values = _IMAGE_VOLUMES * np.prod(shape) + np.prod(pulled) + fields * grid.dims * np.prod(field_shape)
        return 4 * (2 if halves else 1) * int(values)

    fitting = tuple(level for level in preset.levels if needed(level) <= budget)
    if not fitting:
        least = needed(preset.levels[0])
        raise ValueError(f"memory_budget must be at least {least} bytes for this image, got {budget}")
    left_out = len(preset.levels) - len(fitting)
    if left_out:
        warnings.warn(
            f"The finest {left_out} of {len(preset.levels)} levels were left out to stay in the memory budget.",
            stacklevel=2,
        )
    # descriptors pull on the finest levels of the whole preset, of which some may be gone
    return replace(preset, levels=fitting, self_similarity=max(0, preset.self_similarity - left_out))


def _scaled(volume: Volume, mask: Volume | None, device: torch.device, *, flat: bool) -> Image:
    """The image with its intensities in [0, 1], outliers clipped, and flat outside of its mask where that is wanted."""
    data = volume.data.to(device)
    inside = None if mask is None else mask.data.to(device)
    scaled = scale_intensities(data, inside, flat=flat)
    region = None if inside is None else inside[None, None]
    return Image(scaled[None, None], Grid.of(volume.data.shape, volume.matrix), region)


def _initial(
    images: tuple[Image, Image],
    start: str | np.ndarray | DisplacementField,
    preset: Preset,
    symmetric: bool,
    progress: Callback | None,
) -> tuple[Tensor, Tensor]:
    """The affine world map, and what is left of the start: a displacement in voxels of some grid over fixed."""
    fixed, moving = images
    none = fixed.data.new_zeros(1, fixed.grid.dims, *[1] * fixed.grid.dims)
    if isinstance(start, DisplacementField):
        if symmetric:
            raise ValueError("a symmetric registration starts from an affine map, got a displacement field as initial")
        return _split_field(start, fixed.grid, fixed.data.device)
    if isinstance(start, np.ndarray):
        return torch.from_numpy(start), none

    def report(degrees: str, similarity: float) -> None:
        if progress is not None:
            progress(Progress(f"affine: {degrees}", 1, 1, None, similarity, fixed.grid.shape))

    forth = align(fixed, moving, preset.affine, window=preset.affine_window, progress=report)
    if not symmetric:
        return forth, none
    back = align(moving, fixed, preset.affine, window=preset.affine_window, progress=report)
    # the mean of the two: exchanging the images inverts it
    return forth @ square_root(torch.linalg.inv(forth) @ torch.linalg.inv(back))[0], none


def _both_may_move(
    pair: _Pair, start: str | np.ndarray | DisplacementField, world: Tensor, marks: tuple[Tensor, Tensor] | None
) -> bool:
    """Whether a registration may begin half-way: nothing that is given is of one image's grid alone."""
    try:
        square_root(world)
    except ValueError:
        return False
    one_mask = (pair.fixed_mask is None) != (pair.moving_mask is None)
    return not one_mask and marks is None and not isinstance(start, DisplacementField)


def _marks(pair: _Pair, world: Tensor) -> tuple[Tensor, Tensor]:
    """Fixed landmarks, and where the affine map takes moving ones from: what the field has to bring together."""
    assert pair.fixed_landmarks is not None
    assert pair.moving_landmarks is not None
    dims, back = pair.fixed.dimensions, torch.linalg.inv(world)
    return pair.fixed_landmarks.double(), pair.moving_landmarks.double() @ back[:dims, :dims].T + back[:dims, dims]


def _split_field(start: DisplacementField, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """A field on the grid as the affine world map nearest to it, and what is left, in voxels of the grid.

    The update smooths its state with mirrored faces, which would bend the affine part there.
    """
    on_grid = resample(start.displacement[None], grid_of(start), grid, antialias=False)[0]
    world, left = split(on_grid, grid)
    return world, left.to(device)


def _domain(fixed: Image, moving: Image, world: Tensor) -> tuple[list[int], Image]:
    """The box of the fixed image that holds whatever there is to align, and the voxel where it begins."""
    grid, ends = fixed.grid, moving.foreground_box().double()
    corners = torch.cartesian_prod(*ends.T)
    dims = grid.dims
    back = torch.linalg.inv(world)
    points = moving.grid.to_world(corners) @ back[:dims, :dims].T + back[:dims, dims]
    reached = torch.cat([grid.to_voxels(points), fixed.foreground_box().double()])
    border = [_BORDER * min(grid.spacing) / edge for edge in grid.spacing]
    first, shape = [], []
    for size, low, high, more in zip(grid.shape, reached.amin(0), reached.amax(0), border, strict=True):
        begin = min(max(math.floor(float(low) - more), 0), size - 1)
        end = max(min(math.ceil(float(high) + more) + 1, size), begin + 1)
        first.append(begin)
        shape.append(end - begin)
    return first, fixed.cropped(first, shape)


def _inside(displacement: Tensor, first: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The part of a displacement on the fixed grid that lies in a box; one of a single voxel holds anywhere."""
    if displacement[0, 0].numel() == 1:
        return displacement
    box = (..., *(slice(begin, begin + size) for begin, size in zip(first, shape, strict=True)))
    return displacement[box].contiguous()


def _extended(displacement: Tensor, first: Sequence[int], shape: Sequence[int], whole: Sequence[int]) -> Tensor:
    """A displacement on a box of the fixed grid, on all of it: beyond its faces it goes on as it is there."""
    padding = [
        side
        for begin, size, total in zip(reversed(first), reversed(shape), reversed(whole), strict=True)
        for side in (begin, total - begin - size)
    ]
    fine = resize_displacement(displacement, shape)
    if displacement.shape[2:] != fine.shape[2:]:
        fine = ops.gaussian(fine, _ROUNDING)
    return functional.pad(fine, padding, mode="replicate")


def _solve_level(
    images: tuple[Image, Image],
    world: Tensor,
    displacement: Tensor,
    level: Level,
    preset: Preset,
    label: str,
    progress: Callback | None,
    features: Features | None,
    marks: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, LevelReport]:
    """The equilibrium on one level, started from the coarser one's."""
    fixed, moving = images
    shape, field_shape = level_shapes(fixed.grid, level, preset)
    grid = fixed.grid.resized(shape)
    pulled, seen = moving.at(min(fixed.grid.spacing) * level.factor), resize(fixed.data, grid.shape)
    beside = None
    if features is not None:
        beside = features.on(grid.resized(field_shape))
    elif compares_structure(level, preset):
        aligned = resample(pulled.data, pulled.grid, grid, world)
        beside = self_similarity(seen, field_shape), self_similarity(aligned, field_shape)
    mask = _only_mask((fixed, pulled), world, displacement, grid)
    if mask is not None and not bool(mask.any()):
        raise ValueError("a mask alone must cover a part of both images after the alignment, got none")
    landmarks = None
    if marks is not None:
        points, reached = (grid.resized(field_shape).to_voxels(side)[None] for side in marks)
        landmarks = points, reached - points
    update = VariationalUpdate(
        seen,
        pulled.data,
        preset.method,
        field=field_shape,
        spacing=grid.spacing,
        affine=grid.map_to(pulled.grid, world),
        mask=mask,
        features=beside,
        landmarks=landmarks,
    )
    return solve_level(update, resize_displacement(displacement, field_shape), level, preset, grid, label, progress)


def _only_mask(images: tuple[Image, Image], world: Tensor, displacement: Tensor, grid: Grid) -> Tensor | None:
    """Where the similarity counts, `[1, 1, *grid.shape]`, if one image alone has a mask.

    That of moving lies where the field has brought it so far: the update's equilibrium is of one function.
    """
    fixed, moving = (image.mask for image in images)
    if (fixed is None) == (moving is None):
        return None
    if fixed is not None:
        return resize_mask(fixed, grid.shape)
    assert moving is not None
    u = resize_displacement(displacement, grid.shape)
    affine = grid.map_to(images[1].grid, world).to(u)[None]
    return ops.warp(moving, u, affine=affine, interpolation="nearest", padding="zeros")


def _resample(
    pair: _Pair, images: tuple[Image, Image], world: Tensor, displacement: Tensor, preset: Preset
) -> dict[str, Any]:
    """The total transform and everything it moves, each interpolated once from the native moving grid."""
    fixed, moving = images[0].grid, images[1].grid
    u = displacement
    still = torch.zeros_like(u)
    mapping = fixed.map_to(moving, world).to(u)[None]
    native = pair.moving.data.to(u.device)[None, None]
    inside = reached(moving.shape, u, mapping)
    outputs: dict[str, Any] = {
        "displacement": join(u, fixed, world),
        "warped": pull(native, u, mapping, inside=inside)[0, 0].cpu(),
        "reached": inside[0, 0].cpu() > 0,
        "affine_warped": pull(native, still, mapping)[0, 0].cpu(),
    }
    as_they_lie = torch.eye(fixed.dims + 1, dtype=world.dtype)
    untouched = fixed.map_to(moving, as_they_lie).to(u)[None]
    for key, way, affine, field_ in (
        ("similarity_before", as_they_lie, untouched, still),
        ("similarity_after", world, mapping, u),
    ):
        warped = ops.warp(images[1].data, field_, affine=affine)
        mask = _only_mask(images, way, field_, fixed)
        outputs[key] = float(preset.method.similarity.value(images[0].data, warped, mask))
    if pair.moving_labels is not None:
        labels = pair.moving_labels.data.to(u.device)[None, None]
        outputs["warped_labels"] = pull(labels, u, mapping, "nearest", inside)[0, 0].cpu()
        outputs["labels_before"] = pull(labels, still, untouched, "nearest")[0, 0].cpu()
    return outputs


def _inverse(
    images: tuple[Image, Image], world: Tensor, u: Tensor, inverse: Tensor, displacement: Tensor, inside: Tensor
) -> dict[str, Any]:
    """The inverse in the world, and how far from itself a point is that went there, `inside` moving, and back."""
    fixed, moving = images[0].grid, images[1].grid
    found = join(inverse, moving, torch.linalg.inv(world))
    mapping = fixed.map_to(moving, world).to(u)[None]
    there_and_back = ops.warp(found.to(u)[None], u, affine=mapping)[0].cpu().add_(displacement)
    error = there_and_back.square_().sum(0).sqrt_()[inside]
    if len(error) == 0:
        return {"inverse": found}
    most = error.kthvalue(math.ceil(0.99 * len(error))).values
    return {"inverse": found, "inverse_consistency_mm": {"mean": float(error.mean()), "p99": float(most)}}


def save(registration: Registration, folder: str | os.PathLike[str]) -> None:
    """Write the transform and what it moved into an existing folder.

    `warped.nii.gz`, `displacement.nii.gz` (ITK's and ANTs' convention: millimetres, LPS), `affine.tfm`, and
    `warped_labels.nii.gz` where labels came, and `inverse_displacement.nii.gz`, on the moving grid, where there is one.
    The last two of an earlier registration in that folder are removed where this one has none.

    Args:
        registration: what `register` returned.
        folder: where to write; it must exist.

    Raises:
        OSError: when a file cannot be written.

    >>> import tempfile, torch
    >>> from deqreg import ops, register
    >>> image = ops.gaussian(torch.rand(1, 1, 16, 16, 16), 2.0)[0, 0]
    >>> save(register(image, image, initial="identity"), tempfile.mkdtemp())
    """
    out, fixed = Path(folder), registration.fixed
    for name in ("inverse_displacement.nii.gz", "warped_labels.nii.gz"):  # of an earlier one, it may be
        (out / name).unlink(missing_ok=True)
    io.write_volume(out / "warped.nii.gz", registration.warped, fixed.affine, space=fixed.space)
    io.write_displacement(out / "displacement.nii.gz", registration.displacement, fixed.affine, space=fixed.space)
    io.write_affine(out / "affine.tfm", registration.affine)
    if registration.inverse is not None:
        moving = registration.moving
        io.write_displacement(
            out / "inverse_displacement.nii.gz", registration.inverse, moving.affine, space=moving.space
        )
    if registration.warped_labels is not None and registration.moving_labels is not None:
        io.write_volume(
            out / "warped_labels.nii.gz",
            registration.warped_labels,
            fixed.affine,
            dtype=registration.moving_labels.dtype,
            space=fixed.space,
        )
