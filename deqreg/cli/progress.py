"""Progress on the terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:  # for annotations alone: it imports torch, and help must be quick
    from deqreg.registration import Progress

_SECONDS_BETWEEN_LINES = 1.0
_CLEAR = "\r\x1b[K"  # to the start of the line, and erase it


class ProgressLines:
    """What a registration's callback shows: an updating line on a terminal, else a line a second and one a stage.

    Args:
        stream: where to write; stderr by default.

    Example:
        >>> import io
        >>> from types import SimpleNamespace
        >>> stream = io.StringIO()
        >>> with ProgressLines(stream) as show:
        ...     show(SimpleNamespace(stage="level 1/1", step=1, steps=9, residual=0.5, similarity=0.25, shape=(8, 8)))
        >>> stream.getvalue().split()
        ['level', '1/1', '8x8', 'step', '1/9', 'residual', '5.0e-01', 'similarity', '0.2500']
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._updates = self._stream.isatty()
        self._stage, self._line, self._due = "", "", 0.0

    def __enter__(self) -> ProgressLines:
        """Return itself; the block's end writes what is still held back."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write the last line of the last stage."""
        self._finish()

    def __call__(self, progress: Progress) -> None:
        """Show a step."""
        if progress.stage != self._stage:
            self._finish()
            self._stage, self._due = progress.stage, 0.0
        self._line = _text(progress)
        if self._updates:
            self._stream.write(_CLEAR + self._line)
            self._stream.flush()
        elif time.monotonic() >= self._due:
            print(self._line, file=self._stream, flush=True)
            self._line, self._due = "", time.monotonic() + _SECONDS_BETWEEN_LINES

    def _finish(self) -> None:
        """End the stage's line."""
        if self._line:
            print("" if self._updates else self._line, file=self._stream, flush=True)
        self._line = ""


def _text(progress: Progress) -> str:
    parts = [
        f"{progress.stage:<19} {'x'.join(map(str, progress.shape)):<12} step {progress.step:>3}/{progress.steps:<4}"
    ]
    if progress.residual is not None:
        parts.append(f"residual {progress.residual:.1e}")
    if progress.similarity is not None:
        parts.append(f"similarity {progress.similarity:.4f}")
    return "  ".join(parts).rstrip()
