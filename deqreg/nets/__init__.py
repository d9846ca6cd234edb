"""Updates `z -> f(z; pair)` whose equilibrium is a registration."""

from deqreg.nets.encoder import Encoder
from deqreg.nets.model import DEQReg
from deqreg.nets.recurrent import RecurrentUpdate
from deqreg.nets.symmetric import SymmetricUpdate
from deqreg.nets.variational import Lncc, MeanSquares, Similarity, Variational, VariationalUpdate

__all__ = [
    "DEQReg",
    "Encoder",
    "Lncc",
    "MeanSquares",
    "RecurrentUpdate",
    "Similarity",
    "SymmetricUpdate",
    "Variational",
    "VariationalUpdate",
]
