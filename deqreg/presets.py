"""What `deqreg register` does to a kind of image: every number of the method in one place, with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from deqreg.nets import Variational
from deqreg.spatial import AffineStage


@dataclass(frozen=True)
class Level:
    """One level of the deformable registration.

    Args:
        factor: voxel edge, in edges of the fixed image's finest axis.
        max_steps: evaluations of the update allowed.
    """

    factor: float
    max_steps: int


@dataclass(frozen=True)
class Preset:
    """A way to register a kind of image.

    Args:
        name: what the command calls it.
        affine: stages of the affine alignment, in millimetres, coarse to fine.
        affine_window: edge of the similarity's window there, in voxels of the stage.
        levels: of the deformable registration, coarse to fine.
        method: the update.
        memory: of Anderson's acceleration.
        weights: of the learned method, the name of a file in `deqreg/weights`, where there are any.
        tol: a level is done when a step changes the field by less than this, in voxels, root mean square.
    """

    name: str
    affine: tuple[AffineStage, ...] = (
        # translations at 8 mm reach centimetres; 4 mm is enough for the deformable levels to take over
        AffineStage(8.0, "translation", 20),
        AffineStage(8.0, "rigid", 30),
        AffineStage(8.0, "affine", 40),
        AffineStage(4.0, "affine", 25),
    )
    affine_window: int = 5
    levels: tuple[Level, ...] = (Level(8, 40), Level(4, 40), Level(2, 40), Level(1, 16))
    method: Variational = field(default_factory=Variational)
    memory: int = 4  # against no memory, the same number of steps leaves a fifth less error
    tol: float = 0.005
    weights: str | None = None


# Cortical folds differ between people within a few millimetres: little reach, so no 1/8 level after the alignment, and
# steps smoothed less than the generic ones, so that a fold can move against its neighbour (docs/method.md).
BRAIN = Preset(
    "brain",
    levels=(Level(4, 40), Level(2, 40), Level(1, 14)),
    method=Variational(smooth_update=2.5, step=2.0),
    tol=0.005,
    weights="brain",
)

# The same person twice, or nothing known: motion is smooth, and noise is no reason to move. On a known field with noise
# the error falls from 0.90 to 0.75, 0.61 and 0.58 mm as steps are smoothed over 1.5, 2, 3 and 4 voxels.
GENERIC = Preset("generic", method=Variational(smooth_update=3.0, step=2.0))

# Breathing moves vessels by centimetres, smoothly: as generic. The name says how the images are recognised.
LUNG = replace(GENERIC, name="lung")

PRESETS = {preset.name: preset for preset in (BRAIN, LUNG, GENERIC)}
