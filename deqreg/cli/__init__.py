"""The command `deqreg`: one module a subcommand. torch is imported only by the subcommands that compute."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings
from collections.abc import Sequence

from deqreg.cli import apply, demo, evaluate, export, info, invert, points, register, train
from deqreg.cli.parser import Parser, ShowVersion

_NEW_OBJECTS = 100_000  # between Python's collections
_BAD_INPUT, _INTERRUPTED = 2, 130  # 130 is what shells give for a command that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `deqreg`; those of the process by default.

    Returns:
        The exit code: 0, 2 for input that cannot be used (one line on stderr, nothing written), 130 when interrupted.

    Example:
        >>> main(["apply", "missing.nii.gz", "moving.nii.gz", "-o", "warped.nii.gz"])
        2
    """
    # Fresh tensors of 2 MiB pages cost a quarter of the page faults; torch reads this when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    parser = Parser(prog="deqreg", description="Deformable registration of medical images as a fixed point.")
    parser.add_argument("--version", action=ShowVersion, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for module in (register, apply, invert, points, export, train, evaluate, demo, info):
        module.add(commands)
    words = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(words, argparse.Namespace(words=["deqreg", *words]))
    try:
        return args.run(args)
    except ValueError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
    except KeyboardInterrupt:
        print(f"\ndeqreg {args.command}: interrupted, nothing written", file=sys.stderr)
        return _INTERRUPTED
    print(f"deqreg {args.command}: {' '.join(message.split())}", file=sys.stderr)
    return _BAD_INPUT


def command() -> int:
    """Run the command line as a process of its own; returns the exit code."""
    # The default of 700 looks through what torch's import builds and keeps time and again, for a fifth of a second.
    gc.set_threshold(_NEW_OBJECTS)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # for users, not for programmers
    code = main()
    # The interpreter's last collections would walk all of torch: a third of a second for memory that is gone anyway.
    gc.freeze()
    return code
