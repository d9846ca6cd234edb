"""Checkpoints: all that a training needs to go on as if it had never stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # what is no pickle raises whatever its bytes lead to
        raise ValueError(f"checkpoint {path}: damaged, or no checkpoint of a training") from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path}: must hold a dictionary, as a training writes it, got {content!r:.60}")
    return content


def load_weights(net: nn.Module, path: str | os.PathLike[str]) -> None:
    """Put weights from a file in place of a network's; those that the file lacks stay.

    Args:
        net: the network.
        path: a `.safetensors` file of a state dictionary or a part of one, or what `load_checkpoint` reads; of
            `checkpoint.pt`, the moving average.

    Raises:
        ValueError: no such file, another kind of file, or weights that the network has no place for.

    >>> import tempfile
    >>> path, net = Path(tempfile.mkdtemp()) / "best.pt", nn.Linear(2, 1)
    >>> save_checkpoint(path, {"weights": {"bias": torch.tensor([3.0])}})
    >>> load_weights(net, path)
    >>> net.bias.item()
    3.0
    """
    weights = _read_safetensors(Path(path)) if Path(path).suffix == ".safetensors" else _read_checkpoint(path)
    own = net.state_dict()
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            place = f"{list(own[name].shape)} for it" if name in own else "no place for it"
            raise ValueError(f"weights {path}: hold {name} of {list(value.shape)}, but the network has {place}")
    net.load_state_dict(weights, strict=False)


def _read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    content = load_checkpoint(path)
    found = content.get("weights", content.get("average"))
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        got = list(content) if found is None else found
        raise ValueError(
            f"weights {path}: must hold what a training writes, tensors by name as weights or average, got {got!r:.60}"
        )
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights {path}: no such file")
    try:
        from safetensors import SafetensorError  # here, for it is an extra
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ValueError(f"weights {path}: reading it needs safetensors: pip install 'deqreg[train]'") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"weights {path}: damaged, or no safetensors file: {error}") from error
