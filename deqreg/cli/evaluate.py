"""`deqreg evaluate`: how well a method registers the pairs of a data set."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from deqreg.cli.output import check_file, check_not_input
from deqreg.cli.parser import check_installed

if TYPE_CHECKING:  # for annotations alone: they import torch, and help must be quick
    from deqreg.data import Case

# column -> how it is shown
_COLUMNS = {
    "dice_before": "{:.4f}",
    "dice": "{:.4f}",
    "tre_before_mm": "{:.2f}",
    "tre_mm": "{:.2f}",
    "folding_percent": "{:.4f}",
    "sd_log_jacobian": "{:.3f}",
    "seconds": "{:.1f}",
    "verdict": "{}",
}
_WIDTH = 16


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "evaluate",
        help="register the pairs of a data set and measure",
        description="Register the pairs of DATASET, a dataset.json in the layout of Learn2Reg or its folder, and print "
        "Dice, landmark errors, folding, the spread of the log-Jacobian, seconds and verdict by pair, and means.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="dataset.json, or the folder that holds it")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write it as JSON too")
    parser.add_argument("--pairs", default="validation", choices=["validation", "training"],
                        help="registration_val or training_paired_images (default: validation)")  # fmt: skip
    parser.add_argument("--limit", metavar="N", type=int, help="the first N pairs alone")
    parser.add_argument("--method", default="variational", help="kind of update, as in deqreg register")
    parser.add_argument("--preset", default="auto", metavar="NAME|FILE", help="as of deqreg register (default: auto)")
    parser.add_argument("--initial", default="auto", metavar="auto|identity", help="affine start (default: auto)")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Register each pair and print its row, then the means."""
    from deqreg.data import read_dataset
    from deqreg.registration import versions
    from deqreg.report import write_json

    if args.output is not None:
        check_file(args.output)
        check_not_input(args.output, [args.dataset, Path(args.dataset) / "dataset.json"])
    check_installed(args.method)
    dataset = read_dataset(args.dataset)
    pairs = dataset.validation_pairs if args.pairs == "validation" else dataset.training_pairs
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {args.limit}")
    pairs = pairs[: args.limit]
    if not pairs:
        raise ValueError(f"dataset {args.dataset}: lists no {args.pairs} pairs")
    print(_line("pair", {name: name for name in _COLUMNS}))
    rows = []
    for fixed, moving in pairs:
        rows.append({"fixed": fixed.image.name, "moving": moving.image.name, **_measure(fixed, moving, args)})
        print(_line(f"{_stem(fixed)} <- {_stem(moving)}", _shown(rows[-1])), flush=True)
    means = {name: _mean([row[name] for row in rows if name in row]) for name in _COLUMNS if name != "verdict"}
    means = {name: value for name, value in means.items() if value is not None}
    print(_line(f"mean of {len(rows)}", _shown(means)))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        content = {"command": shlex.join(args.words), "dataset": dataset.name, "mean": means, "pairs": rows}
        write_json(args.output, {**content, "versions": versions()})
    return 0


def _measure(fixed: Case, moving: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One pair's row; what it has no labels or landmarks for is left out."""
    from deqreg import io
    from deqreg.data import read_points
    from deqreg.register import register

    images = [io.read_image(case.image, role) for case, role in ((fixed, "fixed image"), (moving, "moving image"))]
    points = [read_points(case, image) for case, image in zip((fixed, moving), images, strict=True)]
    labelled = fixed.label is not None and moving.label is not None
    marked = points[0] is not None and points[1] is not None
    report = register(
        *images,
        method=args.method,
        preset=args.preset,
        initial=args.initial,
        device=args.device,
        fixed_mask=fixed.mask,
        moving_mask=moving.mask,
        fixed_labels=fixed.label if labelled else None,
        moving_labels=moving.label if labelled else None,
        fixed_landmarks=points[0] if marked else None,
        moving_landmarks=points[1] if marked else None,
    ).report()
    row = {name: report[name] for name in ("status", "verdict", "folding_percent", "sd_log_jacobian")}
    row["seconds"] = report["seconds"]["total"]
    if "dice" in report:
        row |= {"dice_before": report["dice"]["before"], "dice": report["dice"]["after"]}
    if "tre_mm" in report:
        row |= {"tre_before_mm": report["tre_mm"]["before"]["mean"], "tre_mm": report["tre_mm"]["after"]["mean"]}
    return row


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else None


def _stem(case: Case) -> str:
    return case.image.name.removesuffix(".gz").removesuffix(".nii")


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {name: form.format(row[name]) for name, form in _COLUMNS.items() if name in row}


def _line(pair: str, cells: dict[str, str]) -> str:
    return f"{pair:<36}" + "".join(f"{cells.get(name, '-'):>{_WIDTH}}" for name in _COLUMNS)
