"""Deformable image registration as a fixed point."""
