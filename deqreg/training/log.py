"""What a training writes down as it goes."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from deqreg.io import replacing

LOG = "log.jsonl"
Record = dict[str, Any]


class JsonLines:
    """A file of one JSON object a line.

    Args:
        path: the file.
        after: lines of later steps are dropped: they are of a run that ended past its last checkpoint.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> JsonLines(path)({"kind": "train", "step": 5, "loss": 0.5})
    >>> log = JsonLines(path, after=4)
    >>> path.read_text()
    ''
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        with replacing(path) as temporary:
            temporary.write_text("".join(line for line in lines if _step(line) <= after), encoding="utf-8")

    def __call__(self, record: Record) -> None:
        """Append a record."""
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")


def _step(line: str) -> float:
    """The step of a line; infinity where a kill cut it short."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


class TensorBoard:
    """The numbers of every record as TensorBoard's scalars, where it is installed; else nothing.

    Args:
        folder: of the event files.
        after: what an earlier run wrote of later steps is hidden.
    """

    def __init__(self, folder: Path, after: int = 0) -> None:
        self.writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=after + 1)

    def __call__(self, record: Record) -> None:
        """Add a record."""
        if self.writer is None:
            return
        for key, value in record.items():
            if isinstance(value, int | float) and key != "step":
                self.writer.add_scalar(f"{record['kind']}/{key}", value, record["step"])
        self.writer.flush()
