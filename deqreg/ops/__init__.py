"""Stateless operators on tensors, one a file; `deqreg.ops.reference` has each in ten lines of plain torch."""

from deqreg.ops.anderson import (
    anderson_mix,
    anderson_partials,
    anderson_solve,
    anderson_update,
)
from deqreg.ops.compose import compose
from deqreg.ops.correlation import correlation
from deqreg.ops.correlation_projection import correlation_projection
from deqreg.ops.exponential import exponential
from deqreg.ops.gaussian import MAX_SIGMA, gaussian
from deqreg.ops.jacobian_determinant import jacobian_determinant
from deqreg.ops.lncc import lncc, lncc_gradient, lncc_gradients
from deqreg.ops.resize import resize, resize_adjoint
from deqreg.ops.splat import splat
from deqreg.ops.warp import warp, warp_gradient

__all__ = [
    "MAX_SIGMA",
    "anderson_mix",
    "anderson_partials",
    "anderson_solve",
    "anderson_update",
    "compose",
    "correlation",
    "correlation_projection",
    "exponential",
    "gaussian",
    "jacobian_determinant",
    "lncc",
    "lncc_gradient",
    "lncc_gradients",
    "resize",
    "resize_adjoint",
    "splat",
    "warp",
    "warp_gradient",
]
