"""Is the verdict on a registration right? Pairs that belong together, and pairs that do not.

    python benchmarks/verdicts.py [--brain DATASET.json] [--only REGEX] [--again]

Wrong pairs are made of right ones: images mirrored along an axis or with their axes swapped, starts 60 mm off or turned
by 90 degrees, other organs, noise; whole, as slices, and as boxes cut out of the middle. Heads mirrored left to right
are listed apart: nothing in the images tells them from right ones. Data: examples/data, and the `registration_val`
pairs of a Learn2Reg dataset.json.

Prints a table by kind of pair. Rows are kept in benchmarks/results/verdicts.json after every registration; what is
there is not computed again unless `--again`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deqreg
from deqreg import io, ops
from deqreg.io import Volume
from deqreg.report import write_json
from deqreg.spatial import Grid, resample

HERE = Path(__file__).resolve().parent
RESULTS, EXAMPLES = HERE / "results" / "verdicts.json", HERE.parent / "examples" / "data"
AXES = ("left to right", "back to front", "upside down")  # array axes 0, 1, 2 of all images here
RIGHT, WRONG, UNDECIDABLE = "right", "wrong", "undecidable"


@dataclass(frozen=True)
class Case:
    """Two images, what else `register` is given, and whether they belong together."""

    kind: str
    name: str
    truth: str
    fixed: Path
    moving: Path
    change: Callable[[Volume], Volume] | None = None  # of the moving image
    change_fixed: Callable[[Volume], Volume] | None = None
    options: dict[str, Any] = field(default_factory=dict)


# What makes a pair wrong.


def mirrored(axis: int) -> Callable[[Volume], Volume]:
    return lambda volume: replace(volume, data=volume.data.flip(axis))


def swapped(volume: Volume) -> Volume:
    return replace(volume, data=volume.data.permute(1, 2, 0).contiguous())


def noise(width: float) -> Callable[[Volume], Volume]:
    def change(volume: Volume) -> Volume:
        made = torch.rand(volume.data.shape, generator=torch.Generator().manual_seed(0))
        return replace(volume, data=ops.gaussian(made[None, None], width)[0, 0])

    return change


def faint(volume: Volume) -> Volume:
    """A hundredth of the image under noise: what a wrong unit or a failed acquisition leaves."""
    made = torch.randn(volume.data.shape, generator=torch.Generator().manual_seed(0))
    return replace(volume, data=volume.data / volume.data.max() * 0.01 + made)


def speck(volume: Volume) -> Volume:
    data = torch.zeros_like(volume.data)
    data[tuple(n // 2 for n in data.shape)] = 1.0
    return replace(volume, data=data)


# Parts of an image.


def slice_of(axis: int) -> Callable[[Volume], Volume]:
    """The middle slice; of the axis from left to right one beside it, where the halves of a brain are not parted."""

    def change(volume: Volume) -> Volume:
        index = volume.data.shape[axis] // 2 + (15 if axis == 0 else 0)
        edges = [*np.delete(volume.spacing, axis), 1.0, 1.0]
        return replace(volume, data=volume.data.select(axis, index).contiguous(), affine=np.diag(edges))

    return change


def grid_of(volume: Volume) -> Grid:
    return Grid(tuple(volume.data.shape), torch.from_numpy(volume.matrix))


def on(volume: Volume, grid: Grid) -> Volume:
    """The image on another grid of its world."""
    data = resample(volume.data[None, None], grid_of(volume), grid)[0, 0]
    return replace(volume, data=data, affine=grid.affine.numpy())


def box(volume: Volume) -> Volume:
    """80 voxels along each axis, from the middle."""
    return on(volume, grid_of(volume).cropped([size // 2 - 40 for size in volume.data.shape], [80, 80, 80]))


def finer(volume: Volume) -> Volume:
    """Half the voxel edge."""
    return on(volume, grid_of(volume).resized([2 * size for size in volume.data.shape]))


def then(*changes: Callable[[Volume], Volume]) -> Callable[[Volume], Volume]:
    """One after the other."""
    return lambda volume: reduce(lambda made, change: change(made), changes, volume)


def off(axis: int, millimetres: float = 60.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[axis, 3] = millimetres
    return matrix


def turned(axis: int, centre: np.ndarray) -> np.ndarray:
    """A quarter turn about a world axis through a point."""
    a, b = (k for k in range(3) if k != axis)
    matrix = np.eye(4)
    matrix[[a, b], [a, b]] = 0.0
    matrix[a, b], matrix[b, a] = -1.0, 1.0
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre
    return matrix


# The pairs.


def spoiled(kind: str, base: Case, axes: tuple[int, ...] = (0, 1, 2), head: bool = True) -> Iterator[Case]:
    """A right pair mirrored along axes; of a head, left to right can't be told."""
    for axis in axes:
        hidden = head and axis == 0
        truth, named = (UNDECIDABLE, "heads left to right") if hidden else (WRONG, kind)
        options = dict(base.options)
        if "moving_mask" in options:
            options["moving_mask"] = mirrored(axis)(io.read_image(options["moving_mask"], "mask"))
        yield replace(
            base, kind=named, name=f"{base.name} {AXES[axis]}", truth=truth, change=mirrored(axis), options=options
        )


def astray(base: Case, away: tuple[float, float, float] = (60.0, 60.0, 60.0)) -> Iterator[Case]:
    """A right pair from starts that are far off, by so many millimetres along each axis."""
    image = io.read_image(base.fixed, "fixed")
    centre = (image.affine @ np.r_[(np.array(image.data.shape) - 1) / 2, 1.0])[:3]
    for axis in range(3):
        starts = {"a start 60 mm off": off(axis, away[axis]), "a start turned by 90 degrees": turned(axis, centre)}
        for kind, start in starts.items():
            options = {**base.options, "initial": start}
            yield replace(base, kind=kind, name=f"{base.name}, axis {axis}", truth=WRONG, options=options)


def parts(pair: Case) -> Iterator[Case]:
    """Slices of both heads, by default and symmetric, and boxes, each right and mirrored."""
    for axis in range(3):
        for options in ({}, {"symmetric": True}):
            name = f"{pair.name}, across {AXES[axis]}" + (", symmetric" if options else "")
            cut = replace(
                pair, name=name, kind="slices", change=slice_of(axis), change_fixed=slice_of(axis), options=options
            )
            yield cut
            inner = then(box, slice_of(axis))
            yield replace(cut, kind="slices of boxes", change=inner, change_fixed=inner)
            # along a slice's own axes, but for the heads' from left to right
            for own in (0, 1) if axis == 0 else (1,):
                along = AXES[own + (own >= axis)]
                wrong = replace(cut, name=f"{name}, {along}", truth=WRONG)
                yield replace(wrong, kind="slices mirrored", change=then(slice_of(axis), mirrored(own)))
                fixed, moving = inner, then(inner, mirrored(own))
                yield replace(wrong, kind="slices of boxes mirrored", change_fixed=fixed, change=moving)
    boxes = replace(pair, kind="boxes", change=box, change_fixed=box)
    yield boxes
    for axis in (1, 2):
        name, change = f"{pair.name} {AXES[axis]}", then(box, mirrored(axis))
        yield replace(boxes, kind="boxes mirrored", name=name, truth=WRONG, change=change)


def examples() -> Iterator[Case]:
    brain, lung, known = (EXAMPLES / name for name in ("brain", "lung", "known_field"))

    def heads(kind: str, fixed: str, moving: str) -> Case:
        return Case(kind, f"{moving} on {fixed}", RIGHT, brain / f"{fixed}.nii.gz", brain / f"{moving}.nii.gz")

    same = heads("patients, one contrast", "fixed", "moving")
    yield from (same, heads(same.kind, "moving", "fixed"), heads(same.kind, "fixed_t2", "moving_t2"))
    across = [("fixed", "moving_t2"), ("fixed", "moving_flair"), ("fixed_t2", "moving")]
    yield from (heads("patients, two contrasts", *names) for names in across)
    yield heads("one head, two contrasts", "fixed", "fixed_t2")
    yield from spoiled("patients mirrored", same)
    yield from spoiled("patients mirrored, two contrasts", heads("", "fixed", "moving_t2"))
    yield from astray(same)
    field_pair = Case("known field", "known field", RIGHT, known / "fixed.nii.gz", known / "moving.nii.gz")
    yield field_pair
    yield replace(field_pair, name="known field back", fixed=field_pair.moving, moving=field_pair.fixed)
    yield from spoiled("known field mirrored", field_pair)
    masks = {f"{side}_mask": str(lung / f"{side}_mask.nii.gz") for side in ("fixed", "moving")}
    back = {"fixed_mask": masks["moving_mask"], "moving_mask": masks["fixed_mask"]}
    for name, ours, theirs in (("lungs with masks", masks, back), ("lungs without masks", {}, {})):
        pair = Case(name, name, RIGHT, lung / "fixed.nii.gz", lung / "moving.nii.gz", options=ours)
        yield pair
        yield replace(pair, name=f"{name}, back", fixed=pair.moving, moving=pair.fixed, options=theirs)
        yield from spoiled("lungs mirrored", pair, head=False)
    # they lie 35 mm apart along the third axis: 60 mm the other way leave 25, and from there they are found
    lungs = Case("", "lungs", RIGHT, lung / "fixed.nii.gz", lung / "moving.nii.gz", options=masks)
    yield replace(lungs, kind="lungs from 25 mm off", name="lungs, off", options={**masks, "initial": off(2)})
    yield from astray(lungs, (60.0, 60.0, -60.0))
    yield Case("another organ", "lung on patient", WRONG, same.fixed, lung / "moving.nii.gz")
    yield Case("another organ", "patient on lung", WRONG, lung / "fixed.nii.gz", same.moving)
    for name, change in (("noise", noise(0.0)), ("smooth noise", noise(3.0)), ("faint", faint), ("a speck", speck)):
        yield replace(same, kind="nothing to see", name=f"{name} on patient", truth=WRONG, change=change)
    yield replace(same, kind="nothing to see", name="patient on a speck", truth=WRONG, change_fixed=speck)


def learn2reg(path: Path) -> Iterator[Case]:
    content = json.loads(path.read_text())
    for number, entry in enumerate(content["registration_val"]):
        fixed, moving = (path.parent / entry[side] for side in ("fixed", "moving"))
        name = " on ".join(file.name.removesuffix(".nii.gz") for file in (moving, fixed))
        pair = Case("brains of two people", name, RIGHT, fixed, moving)
        yield pair
        yield from spoiled("brains mirrored", pair, axes=(0, 1, 2) if number < 3 else (0,))
        yield from parts(pair) if number < 3 else ()
        if number == 0:
            fine = then(box, finer)
            yield replace(pair, kind="boxes at half the spacing", change=fine, change_fixed=fine)
            yield replace(pair, kind="array axes swapped", truth=WRONG, change=swapped)
            yield from astray(pair)
            lung, patient, template = (EXAMPLES / part / "moving.nii.gz" for part in ("lung", "brain", "known_field"))
            yield Case("brains, another scanner", "patient on brain", RIGHT, fixed, patient)
            yield Case("brains, another scanner", "template on brain", RIGHT, fixed, template)
            yield Case("another organ", "lung on brain", WRONG, fixed, lung)
            yield Case("another organ", "brain on lung", WRONG, lung.with_name("fixed.nii.gz"), fixed)


# The work.


def judge(case: Case) -> dict[str, Any]:
    """Register with default settings and keep the verdict."""
    images = [io.read_image(path, path.stem) for path in (case.fixed, case.moving)]
    for side, change in enumerate((case.change_fixed, case.change)):
        images[side] = images[side] if change is None else change(images[side])
    row = {"kind": case.kind, "pair": case.name, "truth": case.truth}
    return row | asdict(deqreg.register(*images, **case.options).quality())


def table(rows: list[dict[str, Any]]) -> str:
    """Rows by kind, as Markdown."""
    lines = ["| pairs | | number | `s` | `sd log J` | `s / sd^1.5` | failed |", "|---|---|---|---|---|---|---|"]
    for truth in (RIGHT, WRONG, UNDECIDABLE):
        for kind in dict.fromkeys(row["kind"] for row in rows if row["truth"] == truth):
            group = [row for row in rows if (row["truth"], row["kind"]) == (truth, kind)]
            s, sd = ([row[name] for row in group] for name in ("local_similarity", "sd_log_jacobian"))
            price = [a / max(b, 1e-3) ** 1.5 for a, b in zip(s, sd, strict=True)]
            failed = sum(row["verdict"] == "failed" for row in group)
            cells = (kind, truth, len(group), spread(s), spread(sd), spread(price), f"{failed} of {len(group)}")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brain", type=Path, help="a Learn2Reg dataset.json with registration_val pairs")
    parser.add_argument("--only", default="", help="regular expression on the kind and the name of a pair")
    parser.add_argument("--again", action="store_true", help="compute what is there already")
    args = parser.parse_args()
    cases = [*(learn2reg(args.brain) if args.brain else ()), *examples()]
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for case in (case for case in cases if re.search(args.only, f"{case.kind}: {case.name}")):
        there = [row for row in rows if (row["kind"], row["pair"]) == (case.kind, case.name)]
        if there and not args.again:
            continue
        row = judge(case)
        rows = [other for other in rows if other not in there] + [row]
        write_json(RESULTS, {"rows": rows})
        expected = {RIGHT: "plausible", WRONG: "failed"}.get(case.truth, row["verdict"])
        flag = "" if row["verdict"] == expected else "   <-- expected otherwise"
        print(f"{case.kind}: {case.name}: {row['verdict']}{flag}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
