"""What `deqreg register` does to a kind of image: every number of the method in one place, with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from deqreg.nets import Lncc, Variational
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
    levels: tuple[Level, ...] = (Level(8, 40), Level(4, 60), Level(2, 50), Level(1, 12))
    method: Variational = field(default_factory=Variational)
    memory: int = 4
    tol: float = 0.01


# Cortical folds differ between people within a few millimetres: little reach, no 1/8 level after an affine alignment.
BRAIN = Preset("brain", levels=(Level(4, 60), Level(2, 60), Level(1, 12)))

# Breathing moves vessels by centimetres, smoothly, under a rib cage that stays.
LUNG = Preset("lung", method=Variational(similarity=Lncc(window=5), smooth_update=2.0))

GENERIC = Preset("generic")

PRESETS = {preset.name: preset for preset in (BRAIN, LUNG, GENERIC)}
