"""Weights on file: a safetensors file that also holds what rebuilds its network."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deqreg.equilibrium import Solver
from deqreg.io import replacing
from deqreg.nets.model import DEQReg

_KEY = "deqreg"  # of the one entry of the file's metadata that is ours


def save_weights(path: str | os.PathLike[str], net: DEQReg, **facts: Any) -> None:
    """Write a network's weights in half precision, with its configuration, whole or not at all.

    Args:
        path: the file, `.safetensors`.
        net: the network.
        facts: anything more that is to be known of it, as JSON holds it; `spacing`, the voxel edge in millimetres of
            the images that it was trained on.

    Raises:
        ModuleNotFoundError: safetensors is not installed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "net.safetensors"
    >>> save_weights(path, DEQReg(dims=2, channels=4, widths=(8,)), spacing=2.0)
    >>> net, facts = load_weights(path)
    >>> net.config()["channels"], facts
    (4, {'spacing': 2.0})
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().half().contiguous() for name, value in net.state_dict().items()}
    metadata = {_KEY: json.dumps({"net": net.config(), "facts": facts})}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_weights(
    path: str | os.PathLike[str], solver: Solver | Sequence[Solver] | None = None
) -> tuple[DEQReg, dict[str, Any]]:
    """Rebuild a network from a file that `save_weights` wrote.

    Args:
        path: the file.
        solver: as in `DEQReg`; its default where it is not given.

    Returns:
        The network, in evaluation mode and without gradients to its weights, and the facts.

    Raises:
        ValueError: the file is not one of these.
        ModuleNotFoundError: safetensors is not installed.

    >>> load_weights("none.safetensors")
    Traceback (most recent call last):
    ValueError: weights none.safetensors: no such file
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"weights {path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ValueError(f"weights {path}: not a safetensors file: {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"weights {path}: must say how its network is built, as deqreg writes it, and does not")
    content = json.loads(metadata[_KEY])
    how = content["net"] if solver is None else {**content["net"], "solver": solver}
    net = DEQReg(**how)
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False), content["facts"]


def packaged(name: str) -> Path:
    """Where weights that come with the package lie.

    >>> packaged("brain").name
    'brain.safetensors'
    """
    return Path(__file__).parents[1] / "weights" / f"{name}.safetensors"
