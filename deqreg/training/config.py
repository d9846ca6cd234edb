"""What a training does: a tree of frozen dataclasses, checked as it is built from YAML."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deqreg.configuration import Choices, build
from deqreg.data import Augmentation
from deqreg.data.cache import STORAGE
from deqreg.equilibrium import Adjoint, Anderson, Implicit, Phantom, Picard, Solver, Unrolled
from deqreg.ops.checks import require

# `kind: NAME` in the file -> the class, for each place where there is a choice
CHOICES: Choices = {
    Solver: {"anderson": Anderson, "picard": Picard},
    Adjoint: {"implicit": Implicit, "phantom": Phantom, "unrolled": Unrolled},
}


@dataclass(frozen=True)
class Data:
    """What to train on.

    Args:
        dataset: a `dataset.json` in the layout of Learn2Reg, or its folder.
        spacing: millimetres that the volumes are coarsened to; None keeps their own.
        storage: `"uint8"` or `"float16"`, in memory.
        pairs: `"listed"`, those of `training_paired_images`; `"all"`, any two training cases; `"auto"`, listed ones
            where there are any.
    """

    dataset: str
    spacing: float | None = None
    storage: str = "uint8"
    pairs: str = "auto"

    def __post_init__(self) -> None:
        """Check the names."""
        require(self.spacing is None or self.spacing > 0, "spacing must be positive or null", self.spacing)
        require(self.storage in STORAGE, f"storage must be one of {', '.join(STORAGE)}", self.storage)
        require(self.pairs in ("auto", "listed", "all"), "pairs must be auto, listed or all", self.pairs)


@dataclass(frozen=True)
class Loss:
    """Weights of the losses, and their settings. A weight of 0 leaves a loss out.

    Args:
        similarity: `"lncc"` or `"mse"`, with a weight of 1.
        window: of lncc, voxels.
        smoothness: weight of `diffusion`.
        folding: weight of `folding`.
        margin: determinant below which a voxel counts as folding.
        dice: weight of `soft_dice`, for pairs with labels.
        landmarks: weight of `landmarks`, per millimetre, for pairs with landmarks.
        known: weight of `endpoint_error`, per millimetre, for synthetic pairs.
    """

    similarity: str = "lncc"
    window: int = 7
    smoothness: float = 1.0
    folding: float = 0.0
    margin: float = 0.1
    dice: float = 0.0
    landmarks: float = 0.0
    known: float = 0.0

    def __post_init__(self) -> None:
        """Check names and numbers."""
        require(self.similarity in ("lncc", "mse"), "similarity must be lncc or mse", self.similarity)
        require(self.window >= 3 and self.window % 2 == 1, "window must be odd and at least 3", self.window)
        for name in ("smoothness", "folding", "dice", "landmarks", "known"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0", getattr(self, name))


@dataclass(frozen=True)
class Correction:
    """Losses at iterates on the way to the equilibrium, each through one evaluation of the update from that iterate.

    Args:
        count: iterates a solve, drawn evenly from all that the solver evaluated after the first; 0 for none.
        weight: of the last of them.
        decay: the one before weighs this much of it, and so on.

    Reference: Bai et al., Deep equilibrium optical flow estimation, CVPR 2022, sec. 3.4.
    """

    count: int = 0
    weight: float = 0.5
    decay: float = 0.8

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.count >= 0, "count must be at least 0", self.count)
        require(self.weight > 0, "weight must be positive", self.weight)
        require(0 < self.decay <= 1, "decay must be in (0, 1]", self.decay)


@dataclass(frozen=True)
class Jacobian:
    """Keeps the update contracting at its equilibrium: a weight on an estimate of `||df/dz||_F^2 / dim z`.

    The estimate is the mean square of `(f(z* + e v) - f(z*)) / e` for Gaussian `v`: no second derivative is needed.

    Args:
        weight: 0 for none.
        probability: with which a step has it.
        epsilon: `e`, in units of the state.

    Reference: Bai, Koltun & Kolter, Stabilizing equilibrium models by Jacobian regularization, ICML 2021, eq. 6, with a
    finite difference in place of the vector-Jacobian product.
    """

    weight: float = 0.0
    probability: float = 1.0
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.weight >= 0, "weight must be at least 0", self.weight)
        require(0 < self.probability <= 1, "probability must be in (0, 1]", self.probability)
        require(self.epsilon > 0, "epsilon must be positive", self.epsilon)


@dataclass(frozen=True)
class Optimiser:
    """AdamW, with a linear warm-up, then half a cosine.

    Args:
        rate: learning rate after the warm-up.
        floor: the last learning rate, as a share of `rate`.
        warmup: steps.
        decay: of the weights.
        betas: of the running means.
        clip: largest norm of the gradient.
        accumulate: batches a step.
        average: decay of the exponential moving average of the weights, which is what is validated and kept.
    """

    rate: float = 2e-4
    floor: float = 0.01
    warmup: int = 100
    decay: float = 1e-4
    betas: tuple[float, ...] = (0.9, 0.99)
    clip: float = 1.0
    accumulate: int = 1
    average: float = 0.999

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.rate > 0, "rate must be positive", self.rate)
        require(0 <= self.floor <= 1, "floor must be in 0 ... 1", self.floor)
        require(self.warmup >= 0, "warmup must be at least 0", self.warmup)
        require(self.decay >= 0, "decay must be at least 0", self.decay)
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas must be two in [0, 1)", self.betas)
        require(self.clip > 0, "clip must be positive", self.clip)
        require(self.accumulate >= 1, "accumulate must be at least 1", self.accumulate)
        require(0 <= self.average < 1, "average must be in [0, 1)", self.average)


PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Config:
    """All that a training does.

    Args:
        output: folder for checkpoints and the log.
        data: what to train on.
        model: arguments of `deqreg.nets.DEQReg` but solver and adjoint.
        initial: a file of weights to start from, `.safetensors`, or a training's `best.pt` or `checkpoint.pt`; it may
            hold a part of the network alone, such as the encoder. None draws all by the seed.
        freeze: parts of the network, such as `encoder`, whose weights stay as they are.
        solver: of the equilibrium.
        adjoint: of the equilibrium.
        loss: what is made small.
        correction: losses on the way.
        jacobian: regularisation of the update.
        augmentation: of the pairs.
        optimiser: and its schedule.
        steps: of the optimiser.
        batch: pairs a process.
        precision: of the network, `"float32"`, or on CUDA `"bfloat16"` or `"float16"`, mixed.
        seed: of everything.
        log_every: steps.
        validate_every: steps.
        checkpoint_every: steps.

    Raises:
        ValueError: when a number is out of range.

    >>> Config("out", Data("data/dataset.json")).steps
    10000
    """

    output: str
    data: Data
    model: Mapping[str, Any] = field(default_factory=dict)
    initial: str | None = None
    freeze: tuple[str, ...] = ()
    solver: Solver = field(default_factory=Anderson)
    adjoint: Adjoint = field(default_factory=Phantom)
    loss: Loss = field(default_factory=Loss)
    correction: Correction = field(default_factory=Correction)
    jacobian: Jacobian = field(default_factory=Jacobian)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimiser: Optimiser = field(default_factory=Optimiser)
    steps: int = 10000
    batch: int = 1
    precision: str = "float32"
    seed: int = 0
    log_every: int = 10
    validate_every: int = 500
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        """Check names and numbers."""
        for name in ("steps", "batch", "log_every", "validate_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        require(self.seed >= 0, "seed must be at least 0", self.seed)
        require(self.precision in PRECISIONS, f"precision must be one of {', '.join(PRECISIONS)}", self.precision)


def read_config(path: str | os.PathLike[str], changes: Sequence[str] = ()) -> Config:
    """Read a training's configuration.

    Args:
        path: YAML, with the names of `Config` and of what it consists of; `kind: NAME` chooses solver and adjoint.
        changes: `NAME=VALUE` each, such as `data.dataset=/data/OASIS`, put over what the file says.

    Returns:
        The configuration.

    Raises:
        ValueError: no such file, no YAML, a name that is not known, a value that is not what it must be; PyYAML is not
            installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train.yaml"
        >>> _ = path.write_text("output: out\\ndata: {dataset: data}\\nadjoint: {kind: phantom, steps: 3}\\n")
        >>> read_config(path, ["steps=20", "optimiser.rate=1e-3"]).adjoint
        Phantom(steps=3, damping=0.5)
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"configuration {path}: no such file")
    content = _parse(path.read_text(encoding="utf-8"), f"configuration {path}")
    if not isinstance(content, dict):
        raise ValueError(f"configuration {path}: must be a mapping of names to values, got {content!r:.60}")
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"a change must be NAME=VALUE, such as data.dataset=FOLDER, got {change!r}")
        _put(content, name.split("."), _parse(value, f"the change {change}"), change)
    return build(Config, content, CHOICES)


def _parse(text: str, name: str) -> Any:
    try:
        import yaml  # here, for it is an extra
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: reading it needs PyYAML: pip install 'deqreg[train]'") from error

    class Loader(yaml.SafeLoader):
        """Plain values, with 1e-3 a number: YAML 1.1 wants a point in it."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), "-+0123456789"
    )
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not YAML: {error}") from error


def _put(content: dict[str, Any], keys: Sequence[str], value: Any, change: str) -> None:
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise ValueError(f"the change {change} goes below {key}, which is the value {content!r:.60}")
    content[keys[-1]] = value
