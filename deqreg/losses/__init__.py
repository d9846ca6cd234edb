"""What a registration is trained to make small: one number a sample, differentiable, in voxels and intensities."""

from deqreg.losses.overlap import soft_dice
from deqreg.losses.points import endpoint_error, landmarks
from deqreg.losses.regularity import diffusion, folding
from deqreg.losses.similarity import lncc, mse

__all__ = ["diffusion", "endpoint_error", "folding", "landmarks", "lncc", "mse", "soft_dice"]
