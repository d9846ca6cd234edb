"""`deqreg train`: a learned update from a configuration."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Any, TextIO

# what a line shows of a record, and how
_SHOWN = {
    "loss": "{:.4f}",
    "similarity": "{:.4f}",
    "soft_dice": "{:.4f}",
    "dice": "{:.4f}",
    "dice_before": "({:.4f} before)",
    "tre": "{:.2f} mm",
    "tre_before": "({:.2f} before)",
    "residual": "{:.1e}",
    "steps": "{:.1f}",
    "folding": "{:.3f} %",
    "seconds": "{:.2f} s",
}
_UNNAMED = ("dice_before", "tre_before")
_SIGNALLED = 128  # shells add the signal's number to it


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "train",
        help="train a learned update",
        description="Train a network as CONFIG says; examples/train holds recipes. Its output folder receives "
        "checkpoint.pt, best.pt and log.jsonl. Ctrl-C ends it with a checkpoint. For several processes: "
        "torchrun --nproc-per-node N -m deqreg train CONFIG.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], dest="changes",
                        help="put a value over the file's, such as data.dataset=/data/OASIS")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, and say where to go on when a signal ended it."""
    from deqreg.training import read_config, train

    config = read_config(args.config, args.changes)
    with TrainingLines() as show:
        ended = train(config, resume=args.resume, device=args.device, listeners=[show])
    if ended:
        print(f"deqreg train: interrupted; {config.output} holds the checkpoint, go on with --resume", file=sys.stderr)
        return _SIGNALLED + ended
    return 0


class TrainingLines:
    """What a training's records look like: a progress bar on a terminal where tqdm is installed, else lines.

    Args:
        stream: where to write; stderr by default.

    Example:
        >>> with TrainingLines(sys.stdout) as show:
        ...     show({"kind": "train", "step": 10, "of": 200, "loss": 0.25, "residual": 1e-3, "steps": 12.0})
        train      10/200  loss 0.2500  residual 1.0e-03  steps 12.0
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._bars = self._stream.isatty() and importlib.util.find_spec("tqdm") is not None
        self._bar: Any = None

    def __enter__(self) -> TrainingLines:
        """Return itself; the block's end leaves the bar as it is."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, record: dict[str, Any]) -> None:
        """Show a record."""
        parts = [
            form.format(record[name]) if name in _UNNAMED else f"{name} {form.format(record[name])}"
            for name, form in _SHOWN.items()
            if name in record
        ]
        if not self._bars:
            line = f"{record['kind']:<10} {record['step']}/{record['of']}  {'  '.join(parts)}"
            print(line, file=self._stream, flush=True)
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=record["of"], initial=record["step"], file=self._stream, dynamic_ncols=True)
        if record["kind"] == "train":
            self._bar.set_postfix_str(" ".join(parts), refresh=False)
            self._bar.update(record["step"] - self._bar.n)
        else:
            self._bar.write(f"{record['kind']} {record['step']}  {'  '.join(parts)}", file=self._stream)
