"""`deqreg demo`: one of the example pairs, registered with defaults."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from deqreg.cli import register
from deqreg.cli.parser import Parser

_FILES = {
    "lung": ("fixed_mask.nii.gz", "moving_mask.nii.gz", "fixed_landmarks.csv", "moving_landmarks.csv"),
    "brain": (),
    "known_field": ("fixed_labels.nii.gz", "moving_labels.nii.gz"),
}


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "demo",
        help="register an example pair",
        description="Register an example pair with default settings, as the command that is printed first would.",
    )
    parser.add_argument("pair", nargs="?", default="lung", choices=list(_FILES), help="which (default: lung)")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="folder for the results")
    parser.add_argument("--data", metavar="DIR", type=Path, help="the repository's examples/data (default: found)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fill in the arguments of `deqreg register` and run it."""
    folder = _examples(args.data) / args.pair
    words = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz"), "-o", str(args.output)]
    for name in _FILES[args.pair]:
        words += [f"--{name.split('.')[0].replace('_', '-')}", str(folder / name)]
    parser = Parser(prog="deqreg demo")
    register.add_arguments(parser)
    command = ["deqreg", "register", *words]
    print(shlex.join(command), flush=True)
    return register.run(parser.parse_args(words, argparse.Namespace(words=command)))


def _examples(given: Path | None) -> Path:
    """Find examples/data: where the user says, else beside this package or below the current folder."""
    places = [given] if given else [Path(__file__).parents[2] / "examples" / "data", Path("examples/data")]
    for place in places:
        if (place / "lung" / "fixed.nii.gz").is_file():
            return place
    raise ValueError(f"no example pairs in {' or '.join(map(str, places))}; clone the repository and give --data")
