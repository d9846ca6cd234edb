"""`deqreg register`: two images in, a folder of results out."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from deqreg.cli.memory import fetching_memory, keep_freed_memory
from deqreg.cli.output import check_folder, check_not_input, publishing
from deqreg.cli.parser import check_installed, memory_size
from deqreg.cli.progress import ProgressLines

if TYPE_CHECKING:  # for annotations alone: it imports torch, and help must be quick
    from deqreg.registration import Registration

_PRODUCTS = (
    "warped.nii.gz",
    "displacement.nii.gz",
    "inverse_displacement.nii.gz",
    "warped_labels.nii.gz",
    "affine.tfm",
    "report.json",
    "report.png",
    "report.html",
)
_INPUTS = (
    "fixed",
    "moving",
    *(f"{side}_{kind}" for side in ("fixed", "moving") for kind in ("mask", "labels", "landmarks")),
    "initial",
    "preset",
)
_NO_PICTURE = "Matplotlib is not installed, so report.png is left out: pip install 'deqreg[cli]'"


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "register",
        help="register a moving image to a fixed image",
        description="Register MOVING to FIXED: the result lies on the grid of FIXED. OUT receives warped.nii.gz, "
        "displacement.nii.gz (for ITK and ANTs: total transform, LPS millimetres), affine.tfm, warped_labels.nii.gz "
        "where labels came, report.json, report.png and report.html.",
    )
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `deqreg register` and what runs them."""
    parser.add_argument("fixed", metavar="FIXED", help="image that stays, NIfTI")
    parser.add_argument("moving", metavar="MOVING", help="image that is warped, NIfTI")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, type=Path, help="folder for the results")
    parser.add_argument(
        "--preset",
        default="auto",
        metavar="NAME|FILE",
        help="settings for a kind of image: brain, lung, generic; auto, which looks at the images; or a TOML file of "
        "what differs from one of them (default: auto)",
    )
    parser.add_argument(
        "--method",
        default="variational",
        choices=["variational", "equilibrium"],
        help="classical update, or a learned one (preset brain) (default: variational)",
    )
    parser.add_argument("--refine", action="store_true", help="go on from the learned field with the classical update")
    parser.add_argument("--symmetric", action="store_true",
                        help="let the images meet half-way; writes inverse_displacement.nii.gz too")  # fmt: skip
    parser.add_argument(
        "--contrast",
        default="auto",
        choices=["auto", "same", "other"],
        help="other: give MOVING the contrast of FIXED, for T1 with T2 or FLAIR (default: auto, where bright in one is "
        "dark in the other)",
    )
    for role in ("fixed", "moving"):
        parser.add_argument(f"--{role}-mask", metavar="FILE", help=f"above 0 where to look in the {role} image")
        parser.add_argument(f"--{role}-labels", metavar="FILE", help=f"segmentation of the {role} image, for Dice")
        parser.add_argument(f"--{role}-landmarks", metavar="FILE", help="CSV with the header x,y,z, RAS mm, for errors")
    parser.add_argument("--use-landmarks", action="store_true", help="let the landmarks pull beside the images")
    parser.add_argument(
        "--initial",
        default="auto",
        metavar="auto|identity|FILE",
        help="affine start: found, none, or an ITK transform (default: auto)",
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute")
    parser.add_argument(
        "--memory-budget", type=memory_size, metavar="SIZE", help="leave out levels that take more, such as 2GiB"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--deterministic", action="store_true", help="the same bits from run to run, on a GPU too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Register, write, and say how it went."""
    check_folder(args.output)
    inputs = [value for name in _INPUTS if isinstance(value := getattr(args, name), str)]
    for product in _PRODUCTS:
        check_not_input(args.output / product, inputs)
    check_installed(args.method)
    with ExitStack() as imports:
        if args.memory_budget is None and not args.symmetric:  # which holds twice as much as it is
            keep_freed_memory()
            imports.enter_context(fetching_memory(args.fixed))
        importlib.import_module("deqreg.register")
    registration = _register(args)
    with publishing(args.output, _PRODUCTS) as folder:
        report = _write(registration, args.words, folder)
    for text in report["warnings"]:
        print(f"warning: {' '.join(text.split())}", file=sys.stderr)
    _print_summary(report, args.output)
    return 0


def _register(args: argparse.Namespace) -> Registration:
    """Run the registration with progress on stderr."""
    from deqreg.register import register

    # a whole command takes a third of a second less than with this import at its end (docs/method.md)
    Thread(target=_import_ahead, daemon=True).start()
    with ProgressLines() as progress:
        return register(
            args.fixed,
            args.moving,
            preset=args.preset,
            method=args.method,
            refine=args.refine,
            symmetric=args.symmetric,
            contrast=args.contrast,
            fixed_mask=args.fixed_mask,
            moving_mask=args.moving_mask,
            fixed_labels=args.fixed_labels,
            moving_labels=args.moving_labels,
            fixed_landmarks=args.fixed_landmarks,
            moving_landmarks=args.moving_landmarks,
            use_landmarks=args.use_landmarks,
            initial=args.initial,
            device=args.device,
            memory_budget=args.memory_budget,
            seed=args.seed,
            deterministic=args.deterministic,
            progress=progress,
        )


def _import_ahead() -> None:
    """Import what the picture is drawn with, where it is installed."""
    with suppress(ImportError):
        importlib.import_module("matplotlib.backends.backend_agg")


def _write(registration: Registration, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write every product to a folder; returns the report."""
    from deqreg.register import save
    from deqreg.report import draw, title_of, write_json, write_page

    start = time.perf_counter()
    picture = folder / "report.png" if importlib.util.find_spec("matplotlib") is not None else None
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(save, registration, folder)  # compresses outside of Python, beside what Python draws
        report = registration.report()
        report["command"] = shlex.join(words)
        if picture is None:
            report["warnings"].append(_NO_PICTURE)
        else:
            draw(registration, picture, report)
        saving.result()
    report["seconds"]["write"] = time.perf_counter() - start
    write_page(folder / "report.html", report, title_of(registration.fixed, registration.moving), picture)
    write_json(folder / "report.json", report)
    return report


def _print_summary(report: dict[str, Any], output: Path) -> None:
    """Print how it went, level by level, and where the results are; in ASCII, for any terminal."""
    from deqreg.report import highlights

    for number, level in enumerate(report["levels"], start=1):
        low, high = level["jacobian_range"]
        residual = f", residual {level['residuals'][-1]:.1e}" if level["residuals"] else ""
        print(
            f"level {number}  {'x'.join(map(str, level['shape']))}: {level['steps']} steps{residual}, "
            f"similarity {level['similarity_before']:.4f} -> {level['similarity_after']:.4f}, "
            f"Jacobian {low:.2f} to {high:.2f}, {level['seconds']:.1f} s"
        )
    print(report["sentence"])
    for item in highlights(report):
        detail = f"   ({item.detail})" if item.detail else ""
        print(f"{item.name:<16} {item.value.replace('→', '->')}{detail}")
    print(
        f"results in {output}: {' '.join(sorted(entry.name for entry in output.iterdir() if entry.name in _PRODUCTS))}"
    )
