"""What `deqreg register` does to a kind of image: each a small file that gives the reasons for its numbers."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deqreg.configuration import Choices, build
from deqreg.nets import Lncc, MeanSquares, Similarity, Variational
from deqreg.spatial import AffineStage

__all__ = ["PRESETS", "Level", "Preset", "read_preset"]

_HERE = Path(__file__).parent
PRESETS = ("brain", "lung", "generic")
_CHOICES: Choices = {Similarity: {"lncc": Lncc, "mean_squares": MeanSquares}}


@dataclass(frozen=True)
class Level:
    """One level of the deformable registration.

    Args:
        factor: voxel edge of the images, in edges of the fixed image's finest axis.
        max_steps: evaluations of the update allowed.
    """

    factor: float
    max_steps: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.factor <= 0 or self.max_steps < 1:
            raise ValueError(f"factor and max_steps must be positive, got {self.factor} and {self.max_steps}")


@dataclass(frozen=True)
class Preset:
    """A way to register a kind of image.

    Args:
        name: what reports call it.
        affine: stages of the affine alignment, coarse to fine.
        affine_window: edge of the similarity's window there, in voxels of the stage.
        levels: of the deformable registration, coarse to fine.
        method: the update.
        coarsening: voxel edge of the field, in edges of the level's images.
        memory: of Anderson's acceleration.
        tol: a level is done when a step changes the field by less than this, in its voxels, root mean square.
        self_similarity: on how many of the finest levels descriptors of local structure pull beside the similarity,
            where learned features do not.
        refinement: `levels` from a learned field on, where they differ.
        half_way: on how many of the coarsest levels both images move, until they meet half-way, where neither a learned
            field nor anything else that is given belongs to one image's grid. Of a symmetric registration it is all.
        smooth_halves: `method.smooth_field` half-way, where it differs.
        weights: of the learned method, the name of a file in `deqreg/weights`, where there are any.
    """

    name: str
    affine: tuple[AffineStage, ...]
    affine_window: int
    levels: tuple[Level, ...]
    method: Variational
    coarsening: float
    memory: int
    tol: float
    self_similarity: int
    refinement: tuple[Level, ...] | None = None
    half_way: int = 0
    smooth_halves: float | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.levels or self.refinement == ():
            raise ValueError("levels and refinement must not be empty, got none")
        if self.affine_window < 3 or self.affine_window % 2 == 0:
            raise ValueError(f"affine_window must be odd and at least 3, got {self.affine_window}")
        for name, least in (("coarsening", 1), ("memory", 1), ("self_similarity", 0), ("half_way", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.tol <= 0:
            raise ValueError(f"tol must be positive, got {self.tol}")


def read_preset(source: str | os.PathLike[str]) -> Preset:
    """A preset, shipped or written by oneself.

    A file holds what differs from the preset it names as `base`; tables are put over the base's value by value, lists
    as a whole.

    Args:
        source: `"brain"`, `"lung"` or `"generic"`, or the path of a TOML file.

    Returns:
        The preset; one of a file is called by the file's name.

    Raises:
        ValueError: no such preset or file, no TOML, a name that is not known, a value that is not what it must be.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rigid_lung.toml"
        >>> _ = path.write_text('base = "lung"\\ntol = 0.001\\n[method]\\nsmooth_field = 0.7\\n')
        >>> found = read_preset(path)
        >>> found.name, found.tol, found.method.smooth_field, found.method.step
        ('rigid_lung', 0.001, 0.7, 3.0)
    """
    path = _HERE / f"{source}.toml" if source in PRESETS else Path(source)
    if path.suffix != ".toml":
        raise ValueError(f"preset must be one of auto, {', '.join(PRESETS)}, or a TOML file, got {os.fspath(source)!r}")
    where = f"preset {source}"
    try:
        return build(Preset, {"name": path.stem, **_read(path, where)}, _CHOICES)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def _read(path: Path, where: str) -> dict[str, Any]:
    """What a file says, over what its base says."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: not TOML: {error}") from error
    base = content.pop("base", None)
    if base is None:
        return content
    if base not in PRESETS:
        raise ValueError(f"{where}: base must be one of {', '.join(PRESETS)}, got {base!r:.60}")
    return _over(_read(_HERE / f"{base}.toml", where), content)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values over others of the same names; mappings that choose a `kind` replace those of another."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping) and value.get("kind") in (None, under.get("kind")):
            merged[key] = _over(under, value)
        else:
            merged[key] = value
    return merged
