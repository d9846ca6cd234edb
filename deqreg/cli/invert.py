"""`deqreg invert`: the transform that leads back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deqreg.cli.output import check_file, check_not_input


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "invert",
        help="invert a transform",
        description="Write the inverse of TRANSFORM: the displacement that brings the fixed image onto the grid of "
        "MOVING, or the inverse matrix of an affine transform.",
    )
    parser.add_argument("transform", metavar="TRANSFORM", help="displacement.nii.gz, or an affine .tfm, .txt or .mat")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path,
                        help="a .nii or .nii.gz file; .tfm or .txt for an affine transform")  # fmt: skip
    parser.add_argument("--reference", metavar="MOVING", help="image whose grid the inverse displacement takes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Invert and write."""
    import numpy as np

    from deqreg import io, transforms
    from deqreg.spatial import Grid

    transform = io.read_transform(args.transform)
    matrix = isinstance(transform, np.ndarray)
    check_file(args.output, (".tfm", ".txt") if matrix else (".nii", ".nii.gz"))
    check_not_input(args.output, [name for name in (args.transform, args.reference) if name is not None])
    if matrix != (args.reference is None):
        wanted = "no --reference: an affine transform has no grid" if matrix else "--reference, whose grid it takes"
        raise ValueError(f"the inverse of {args.transform} needs {wanted}")
    if isinstance(transform, np.ndarray):
        inverse = np.linalg.inv(transform)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        io.write_affine(args.output, inverse)
    else:
        reference = io.read_grid(args.reference)
        if reference.dimensions != len(transform.displacement):
            raise ValueError(f"{reference.name}: must be {len(transform.displacement)}-D as the transform, "
                             f"got {reference.dimensions}-D")  # fmt: skip
        grid = Grid.of(reference.data.shape, reference.matrix)
        displacement = transforms.invert(transform, grid)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        io.write_displacement(args.output, displacement, reference.affine, space=reference.space)
    print(args.output)
    return 0
