"""Fixed points of any update `z -> f(z)`: solvers that find them, adjoints that differentiate them. No images here."""

from deqreg.equilibrium.adjoints import Adjoint, AdjointWarning, Implicit, Phantom, Unrolled
from deqreg.equilibrium.fixed_point import fixed_point
from deqreg.equilibrium.solution import Solution, State, Status, Trace
from deqreg.equilibrium.solvers import Anderson, Callback, Picard, Solver

__all__ = [
    "Adjoint",
    "AdjointWarning",
    "Anderson",
    "Callback",
    "Implicit",
    "Phantom",
    "Picard",
    "Solution",
    "Solver",
    "State",
    "Status",
    "Trace",
    "Unrolled",
    "fixed_point",
]
