"""Grids in the world, resampling between them, pyramids, and affine alignment."""

from deqreg.spatial.affine import AffineStage, Image, align
from deqreg.spatial.contrast import match_contrast
from deqreg.spatial.grid import Grid
from deqreg.spatial.intensity import scale_intensities
from deqreg.spatial.pyramid import level_shape, pyramid
from deqreg.spatial.resample import pull, resample, resize, resize_displacement, sample
from deqreg.spatial.self_similarity import self_similarity

__all__ = [
    "AffineStage",
    "Grid",
    "Image",
    "align",
    "level_shape",
    "match_contrast",
    "pull",
    "pyramid",
    "resample",
    "resize",
    "resize_displacement",
    "sample",
    "scale_intensities",
    "self_similarity",
]
