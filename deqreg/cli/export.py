"""`deqreg export`: transforms in other tools' forms."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deqreg.cli.output import check_file, check_not_input

if TYPE_CHECKING:  # for annotations alone: they import torch, and help must be quick
    import numpy as np

    from deqreg.io import DisplacementField

# format -> what -o may end in
_SUFFIXES = {"elastix": (".txt",), "greedy": (".mat", ".txt"), "learn2reg": (".nii", ".nii.gz")}


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "export",
        help="write a transform in another tool's form",
        description="Write TRANSFORM for a tool that does not read it as it is. ANTs, SimpleITK, greedy and 3D Slicer "
        "read displacement.nii.gz, and all but greedy affine.tfm too. elastix: a parameter file for transformix. "
        "greedy: the matrix of an affine transform, as c3d_affine_tool has it too. learn2reg: displacements in "
        "voxels, (X, Y, Z, 3), as VoxelMorph and MONAI sample them too.",
    )
    parser.add_argument("transform", metavar="TRANSFORM", help="displacement.nii.gz, or an affine .tfm, .txt or .mat")
    parser.add_argument("--format", required=True, choices=list(_SUFFIXES), help="whose form")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="the file to write")
    parser.add_argument("--reference", metavar="IMAGE", help="elastix, affine: the fixed image, whose grid results "
                        "take; learn2reg: the moving image (default: it is on the displacement's grid)")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the transform and write it anew."""
    from deqreg import io

    check_file(args.output, _SUFFIXES[args.format])
    check_not_input(args.output, [name for name in (args.transform, args.reference) if name is not None])
    transform = io.read_transform(args.transform)
    write = {"elastix": _elastix, "greedy": _greedy, "learn2reg": _learn2reg}[args.format]
    write(transform, args)
    print(args.output)
    return 0


def _elastix(transform: np.ndarray | DisplacementField, args: argparse.Namespace) -> None:
    from deqreg import io

    if isinstance(transform, io.DisplacementField):
        if args.reference is not None:
            raise ValueError("--reference is for affine transforms: results take the displacement's grid")
        source, shape, affine = Path(args.transform), tuple(transform.displacement.shape[1:]), transform.affine
    elif args.reference is None:
        raise ValueError(f"an affine transform for elastix needs --reference, the fixed image, got {args.transform}")
    else:
        image = io.read_grid(args.reference)
        source, shape, affine = transform, tuple(image.data.shape), image.affine
    args.output.parent.mkdir(parents=True, exist_ok=True)
    io.write_elastix(args.output, source, shape, affine)


def _greedy(transform: np.ndarray | DisplacementField, args: argparse.Namespace) -> None:
    from deqreg import io

    if isinstance(transform, io.DisplacementField):
        raise ValueError(f"a transform for greedy must be affine; greedy reads displacements such as "
                         f"{args.transform} as they are")  # fmt: skip
    if args.reference is not None:
        raise ValueError("--reference is not for greedy, whose matrix belongs to no grid")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    io.write_greedy(args.output, transform)


def _learn2reg(transform: np.ndarray | DisplacementField, args: argparse.Namespace) -> None:
    from deqreg import io

    if not isinstance(transform, io.DisplacementField):
        raise ValueError(f"a transform for learn2reg must be a displacement, got the matrix {args.transform}")
    affine = transform.affine
    if args.reference is not None:
        image = io.read_grid(args.reference)
        if image.dimensions != len(transform.displacement):
            raise ValueError(f"{image.name}: must be {len(transform.displacement)}-D as the transform, "
                             f"got {image.dimensions}-D")  # fmt: skip
        affine = image.affine
    args.output.parent.mkdir(parents=True, exist_ok=True)
    io.write_voxels(args.output, transform, affine)
