"""Updates `z -> f(z; pair)` whose equilibrium is a registration."""

from deqreg.nets.variational import Lncc, MeanSquares, Similarity, Variational, VariationalUpdate

__all__ = ["Lncc", "MeanSquares", "Similarity", "Variational", "VariationalUpdate"]
