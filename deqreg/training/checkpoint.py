"""Checkpoints: all that a training needs to go on as if it had never stopped."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from deqreg.io import replacing

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all, even where the power goes.

    Args:
        path: the file.
        content: tensors, numbers, texts, and dictionaries and lists of such.

    Raises:
        OSError: when it cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
    >>> save_checkpoint(path, {"step": 3})
    >>> load_checkpoint(path)
    {'step': 3}
    """
    with replacing(path) as temporary:
        torch.save(content, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a training wrote; no code in it is run.

    Args:
        path: `checkpoint.pt`, with everything, or `best.pt`, with the network that did best in validation: `"net"`, its
            arguments; `"weights"`, their moving average, as a state dictionary; `"step"`; `"validation"`.

    Returns:
        Its content, on the CPU.

    Raises:
        ValueError: no such file, or one that is no checkpoint.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "best.pt"
    >>> save_checkpoint(path, {"net": {}, "step": 100})
    >>> load_checkpoint(path)["step"]
    100
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint {path}: damaged, or no checkpoint of a training") from error
