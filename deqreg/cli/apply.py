"""`deqreg apply`: resample images through a displacement that is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deqreg.cli.output import check_file, check_not_input, publishing

if TYPE_CHECKING:  # for annotations alone: they import torch, and help must be quick
    import torch

    from deqreg.io import DisplacementField, Volume

_SUFFIXES = (".nii", ".nii.gz")


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "apply",
        help="resample images or labels through a displacement",
        description="Resample each MOVING once, at p + d(p), onto the grid of DISPLACEMENT or of FIXED.",
    )
    parser.add_argument("displacement", metavar="DISPLACEMENT", help="displacement.nii.gz of a registration")
    parser.add_argument("moving", metavar="MOVING", nargs="+", help="images in the world of the moving image")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path,
                        help="a .nii or .nii.gz file; or a folder, which receives NIfTI of MOVING's names")  # fmt: skip
    parser.add_argument("--interpolation", default="linear", choices=["linear", "nearest"],
                        help="nearest for labels and masks (default: linear)")  # fmt: skip
    parser.add_argument(
        "--reference", metavar="FIXED", help="image whose grid the results take (default: DISPLACEMENT's)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Resample all images, then write them."""
    from deqreg import io

    targets = _targets(args.moving, args.output)
    inputs = [args.displacement, *args.moving, *([] if args.reference is None else [args.reference])]
    for target in targets:
        check_file(target, _SUFFIXES)
        check_not_input(target, inputs)
    field = io.read_displacement(args.displacement)
    if args.reference is not None:
        field = _on_grid(field, io.read_grid(args.reference))
    images = [io.read_volume(source, "moving image") for source in args.moving]
    types = [_type_on_file(image, args.interpolation) for image in images]
    warped = [_resample(image, field, args.interpolation) for image in images]
    with publishing(targets[0].parent, [target.name for target in targets]) as folder:
        for dtype, result, target in zip(types, warped, targets, strict=True):
            io.write_volume(folder / target.name, result, field.affine, dtype=dtype, space=field.space)
    print(*targets, sep="\n")
    return 0


def _targets(sources: list[str], output: Path) -> list[Path]:
    """Name the file that each image goes to, all of them in one folder."""
    if output.name.endswith(_SUFFIXES):
        if len(sources) > 1:
            raise ValueError(f"-o must be a folder for {len(sources)} images, got the file {output}")
        return [output]
    names = [Path(source).name for source in sources]
    targets = [
        output / (name if name.endswith(_SUFFIXES) else Path(name).with_suffix(".nii.gz").name) for name in names
    ]
    if len(set(targets)) < len(targets):
        raise ValueError(f"images must have different names to go to one folder, got {', '.join(sources)}")
    return targets


def _on_grid(field: DisplacementField, reference: Volume) -> DisplacementField:
    """Interpolate a displacement on the grid of an image of the same world; it stays constant beyond its own grid."""
    from deqreg import io, spatial

    d = reference.dimensions
    if len(field.displacement) != d:
        raise ValueError(f"{reference.name}: must be {len(field.displacement)}-D as the displacement, got {d}-D")
    own = spatial.Grid.of(field.displacement.shape[1:], io.grid_matrix(field.affine, d))
    onto = spatial.Grid.of(reference.data.shape, reference.matrix)
    displacement = spatial.resample(field.displacement[None], own, onto, antialias=False)
    return io.DisplacementField(displacement[0], reference.affine, reference.space)


def _resample(image: Volume, field: DisplacementField, interpolation: str) -> torch.Tensor:
    """Sample an image once, at `A_moving^-1 A_fixed (x + u(x))`, u in voxels; zero outside of its voxels, as in ITK."""
    import torch

    from deqreg import io, spatial

    d = len(field.displacement)
    if image.dimensions != d:
        raise ValueError(f"{image.name}: must be {d}-D as the displacement, got {image.dimensions}-D")
    grid = io.grid_matrix(field.affine, d)
    to_voxels = torch.from_numpy(np.linalg.inv(grid[:-1, :-1])).to(field.displacement)
    u = torch.tensordot(to_voxels, field.displacement, dims=1)[None]
    affine = _voxel_map(np.linalg.inv(image.matrix) @ grid)
    return spatial.pull(image.data[None, None], u, affine, interpolation)[0, 0]


def _type_on_file(image: Volume, interpolation: str) -> np.dtype:
    """The image's own type for whole numbers, which nearest neighbours keep; else float32."""
    from deqreg import io

    data = image.data  # integers on file may be scaled, to fractions and beyond what any integer type holds
    if interpolation != "nearest" or not bool((data == data.round()).all()):
        return np.dtype(np.float32)
    if image.dtype.kind in "iu" and image.dtype.itemsize >= 4:  # narrower ones are this large by their scale alone
        io.check_exact(image)
    return image.dtype if float(data.abs().max()) < 2**31 else np.dtype(np.float32)


def _voxel_map(matrix: np.ndarray) -> torch.Tensor:
    """[d + 1, d + 1] to the [1, d, d + 1] float32 of `ops.warp`."""
    import torch

    return torch.from_numpy(matrix[:-1]).float()[None]
