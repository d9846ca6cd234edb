"""`deqreg points`: landmarks of one image in the other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deqreg.cli.output import check_file, check_not_input

if TYPE_CHECKING:  # for annotations alone: they import torch, and help must be quick
    import torch

    from deqreg.io import DisplacementField


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "points",
        help="move landmarks with a transform",
        description="Move POINTS of the fixed image to where they are in the moving one, p + d(p), or back with "
        "--inverse. (Images go the other way: a displacement brings the moving image onto the fixed one.)",
    )
    parser.add_argument("transform", metavar="TRANSFORM", help="displacement.nii.gz, or an affine .tfm, .txt or .mat")
    parser.add_argument("points", metavar="POINTS", help="CSV with the header x,y,z, RAS millimetres")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="a .csv file of the same form")
    parser.add_argument("--inverse", action="store_true", help="from the moving image to the fixed one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, move and write the points."""
    import numpy as np

    from deqreg import io, transforms

    check_file(args.output, (".csv",))
    check_not_input(args.output, [args.transform, args.points])
    transform = io.read_transform(args.transform)
    name = f"points {args.points}"
    points = io.read_landmarks(args.points, "points")
    d = len(transform) - 1 if isinstance(transform, np.ndarray) else len(transform.displacement)
    if points.shape[1] != d:
        raise ValueError(f"{name}: must be {d}-D as the transform, got {points.shape[1]}-D")
    if not isinstance(transform, np.ndarray) and not args.inverse:
        _check_inside(points, transform, name)
    moved = transforms.move_points(transform, points, inverse=args.inverse)
    if not isinstance(transform, np.ndarray) and args.inverse:
        _check_inside(moved, transform, f"{name}, in the fixed image")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    io.write_landmarks(args.output, moved)
    print(args.output)
    return 0


def _check_inside(points: torch.Tensor, field: DisplacementField, name: str) -> None:
    """Raise where points of the fixed image lie off the displacement's grid, where nothing is known."""
    from deqreg import io

    io.check_landmarks_inside(points, io.Volume(field.displacement[0], field.affine, name="the displacement"), name)
