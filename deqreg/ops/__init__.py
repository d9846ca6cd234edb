"""Stateless operators on tensors, one a file; `deqreg.ops.reference` has each in ten lines of plain torch."""

from deqreg.ops.jacobian_determinant import jacobian_determinant
from deqreg.ops.splat import splat
from deqreg.ops.warp import warp

__all__ = ["jacobian_determinant", "splat", "warp"]
