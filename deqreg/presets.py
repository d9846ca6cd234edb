"""What `deqreg register` does to a kind of image: every number of the method in one place, with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from deqreg.nets import Lncc, Variational
from deqreg.spatial import AffineStage


@dataclass(frozen=True)
class Level:
    """One level of the deformable registration.

    Args:
        factor: voxel edge of the images, in edges of the fixed image's finest axis.
        max_steps: evaluations of the update allowed.
    """

    factor: float
    max_steps: int


# translations at 8 mm reach centimetres; 4 mm is enough for the deformable levels to take over
ALIGNMENT = (
    AffineStage(8.0, "translation", 20),
    AffineStage(8.0, "rigid", 30),
    AffineStage(8.0, "affine", 40),
    AffineStage(4.0, "affine", 25),
)


@dataclass(frozen=True)
class Preset:
    """A way to register a kind of image.

    Args:
        name: what the command calls it.
        affine: stages of the affine alignment, in millimetres, coarse to fine.
        affine_window: edge of the similarity's window there, in voxels of the stage.
        levels: of the deformable registration, coarse to fine.
        refinement: the same from a learned field on, where they differ.
        method: the update.
        smooth_halves: `method.smooth_field` of a symmetric registration, where it differs.
        coarsening: voxel edge of the field, in edges of the level's images.
        memory: of Anderson's acceleration.
        tol: a level is done when a step changes the field by less than this, in its voxels, root mean square.
        self_similarity: whether descriptors of local structure pull beside the similarity on the finest level, where
            learned features do not.
        weights: of the learned method, the name of a file in `deqreg/weights`, where there are any.
    """

    name: str
    affine: tuple[AffineStage, ...] = ALIGNMENT
    affine_window: int = 5
    levels: tuple[Level, ...] = (Level(8, 40), Level(4, 40), Level(2, 40), Level(1, 30))
    refinement: tuple[Level, ...] | None = None
    method: Variational = field(default_factory=Variational)
    smooth_halves: float | None = None
    # as smooth as the field is, it loses nothing on half as many voxels an axis, and a step costs a fraction
    coarsening: float = 2.0
    # with 4, steps of this length still swing on the coarse levels; the residual there falls two to four times lower
    memory: int = 8
    # on a known field the error falls from 0.56 to 0.53 mm between 0.005 and 0.002, and by 0.01 more at twice the steps
    tol: float = 0.002
    self_similarity: bool = False
    weights: str | None = None


# Cortical folds differ between people within a few millimetres: little reach, so no 1/8 level after the alignment;
# steps smoothed less than the generic ones, so that a fold can move against its neighbour; the noise of a good T1. The
# smoothing of the field against the length of a step leaves the spread of the log-Jacobian below that of the best peer,
# and no folds; half-way the spread is less, and so is the smoothing. Which fold meets which the alignment decides:
# one more stage brings it to a fold's width. From a learned field on, the last nine steps of 25 add 0.0004 of Dice and
# 0.010 to the spread (docs/method.md, docs/learned.md).
BRAIN = Preset(
    "brain",
    affine=(*ALIGNMENT, AffineStage(2.0, "affine", 15)),
    levels=(Level(4, 30), Level(2, 30), Level(1, 25)),
    refinement=(Level(4, 30), Level(2, 30), Level(1, 16)),
    method=Variational(similarity=Lncc(epsilon=1e-4), step=4.0, smooth_update=1.0, smooth_field=0.43),
    smooth_halves=0.38,
    tol=0.005,
    weights="brain",
)

# The same person twice, or nothing known: motion is smooth, and noise, taken to be 3 % of the range, no reason to move.
GENERIC = Preset(
    "generic",
    method=Variational(similarity=Lncc(epsilon=1e-3), step=3.0, smooth_update=2.0, smooth_field=0.35),
)

# Breathing moves vessels by centimetres, and neighbouring ones a little differently. Vessels are thinner than the
# correlation's window: descriptors of what lies next to what place them better, once the large motion is found. Twice
# their weight is closer by little on the landmarks, and further off under noise (docs/method.md).
LUNG = Preset(
    "lung",
    method=Variational(similarity=Lncc(epsilon=1e-3), step=3.0, smooth_update=1.25, smooth_field=0.5, guidance=0.5),
    self_similarity=True,
)

PRESETS = {preset.name: preset for preset in (BRAIN, LUNG, GENERIC)}
