"""Grids in the world, resampling between them, pyramids, affine alignment, and contrast."""

from deqreg.spatial.affine import AffineStage, Image, align
from deqreg.spatial.contrast import contrast_is_reversed, match_contrast
from deqreg.spatial.grid import Grid
from deqreg.spatial.intensity import background, scale_intensities
from deqreg.spatial.inverse import invert, invert_points
from deqreg.spatial.pyramid import level_shape
from deqreg.spatial.resample import (
    pull,
    reached,
    resample,
    resample_displacement,
    resize,
    resize_displacement,
    resize_mask,
    sample,
    scatter,
)
from deqreg.spatial.self_similarity import self_similarity

__all__ = [
    "AffineStage",
    "Grid",
    "Image",
    "align",
    "background",
    "contrast_is_reversed",
    "invert",
    "invert_points",
    "level_shape",
    "match_contrast",
    "pull",
    "reached",
    "resample",
    "resample_displacement",
    "resize",
    "resize_displacement",
    "resize_mask",
    "sample",
    "scale_intensities",
    "scatter",
    "self_similarity",
]
