"""What a registration is when it is done: the transform, what it makes of the moving image, and how it went."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deqreg import metrics
from deqreg.io import Volume
from deqreg.quality import Quality, assess


@dataclass(frozen=True)
class Progress:
    """A sign of life from a running registration.

    Attributes:
        stage: what is being done, for a person.
        step: how far the stage is.
        steps: the most steps the stage may take.
        residual: root mean square change of the field by a step, in its voxels, where there is one.
        similarity: mean squared local correlation, or minus the mean square; higher is better.
        shape: the grid of the level.
    """

    stage: str
    step: int
    steps: int
    residual: float | None
    similarity: float | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LevelReport:
    """How one level of the deformable registration went.

    Attributes:
        shape: voxels of the images along each axis.
        field_shape: voxels of the field.
        spacing: their edges in millimetres.
        steps: evaluations of the update.
        status: of the solver, a word.
        sentence: the same for a person.
        residuals: one a step, voxels of the field, root mean square.
        similarity_before: at the level's start.
        similarity_after: at its end.
        jacobian_range: smallest and largest Jacobian determinant of the field.
        seconds: wall time.
    """

    shape: tuple[int, ...]
    field_shape: tuple[int, ...]
    spacing: tuple[float, ...]
    steps: int
    status: str
    sentence: str
    residuals: tuple[float, ...]
    similarity_before: float
    similarity_after: float
    jacobian_range: tuple[float, float]
    seconds: float


@dataclass(frozen=True, eq=False)
class Registration:
    """A pair of images, the transform between them, and how it was found.

    Attributes:
        fixed: the image that stays.
        moving: the image that was moved.
        displacement: `[d, *S]` float32 on the fixed grid, RAS millimetres: `p_moving = p_fixed + d(p_fixed)`.
        affine: `[d + 1, d + 1]`, the world map that the deformation started from, RAS millimetres.
        warped: `[*S]`, moving on the fixed grid, interpolated once; zero outside of the moving image.
        reached: `[*S]`, where the moving image has voxels under the transform.
        affine_warped: `[*S]`, as warped, under the affine map alone.
        warped_labels: `[*S]`, the moving labels on the fixed grid, where labels came.
        fixed_mask, moving_mask, fixed_labels, moving_labels: as they came.
        fixed_landmarks, moving_landmarks: `[P, d]`, RAS millimetres, as they came.
        inverse: `[d, *S_moving]` float32 on the moving grid, RAS millimetres, of a symmetric registration:
            `p_fixed = p_moving + i(p_moving)`; and inverse_consistency_mm: how far points of the fixed image that went
            there and back are from where they began, mean and 99th percentile; None where none stays inside.
        levels: how each level went.
        status: a word; sentence: the same for a person.
        similarity_before: at full resolution, of the images as they lie in the world; similarity_after: at the end.
        seconds: wall time by stage.
        warnings: what a user should know, a sentence each.
        settings: every choice that was made.
    """

    fixed: Volume
    moving: Volume
    displacement: Tensor
    affine: np.ndarray
    warped: Tensor
    reached: Tensor
    affine_warped: Tensor
    levels: tuple[LevelReport, ...]
    status: str
    sentence: str
    similarity_before: float
    similarity_after: float
    seconds: dict[str, float]
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()
    warped_labels: Tensor | None = None
    fixed_mask: Volume | None = None
    moving_mask: Volume | None = None
    fixed_labels: Volume | None = None
    moving_labels: Volume | None = None
    fixed_landmarks: Tensor | None = None
    moving_landmarks: Tensor | None = None
    labels_before: Tensor | None = field(default=None, repr=False)
    inverse: Tensor | None = None
    inverse_consistency_mm: dict[str, float] | None = None

    def accuracy(self) -> dict[str, Any]:
        """Dice and landmark errors before, as the images lie in the world, and after, as far as either came."""
        found: dict[str, Any] = {}
        if self.fixed_labels is not None and self.warped_labels is not None and self.labels_before is not None:
            after = metrics.dice(self.fixed_labels.data, self.warped_labels)
            before = metrics.dice(self.fixed_labels.data, self.labels_before)
            found["dice"] = {
                "before": metrics.mean_over_labels(before),
                "after": metrics.mean_over_labels(after),
                "labels": {str(label): value for label, value in after.items()},
            }
        if self.fixed_landmarks is not None and self.moving_landmarks is not None:
            points = self.fixed_landmarks, self.moving_landmarks
            found["tre_mm"] = {
                "before": metrics.tre(None, *points),
                "after": metrics.tre(self.displacement, *points, self.fixed.affine),
            }
        return found

    def quality(self) -> Quality:
        """Whether this can be believed, told without labels or landmarks."""
        mask = None if self.fixed_mask is None else self.fixed_mask.data
        return assess(self.fixed, self.warped, self.displacement, self.affine, mask, self.reached)

    def report(self) -> dict[str, Any]:
        """Everything that is a number or a sentence, ready for JSON.

        Returns:
            Status, verdict with its reasons and figures, similarity, accuracy, levels, seconds, peak memory in bytes,
            settings, versions.
        """
        quality = self.quality()
        return {
            "status": self.status,
            "sentence": self.sentence,
            "similarity": {"before": self.similarity_before, "after": self.similarity_after},
            **asdict(quality),
            **self.accuracy(),
            **({} if self.inverse is None else {"inverse_consistency_mm": self.inverse_consistency_mm}),
            "affine_ras_mm": np.asarray(self.affine).tolist(),
            "levels": [asdict(level) for level in self.levels],
            "seconds": self.seconds,
            "peak_memory_bytes": peak_memory(),
            "warnings": [*self.warnings, *quality.reasons],
            "settings": self.settings,
            "versions": versions(),
        }


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes everywhere but there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """What this ran on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for name in ("deqreg", "nibabel"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
            found[name] = "not installed"
    return found
