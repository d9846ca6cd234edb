"""Deformable image registration as a fixed point."""

from deqreg.register import register, save
from deqreg.registration import LevelReport, Progress, Registration

__all__ = ["LevelReport", "Progress", "Registration", "register", "save"]
