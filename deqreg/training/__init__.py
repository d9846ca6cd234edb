"""Training of a learned update as an equilibrium: configuration, objective, loop, checkpoints."""

from deqreg.training.checkpoint import load_checkpoint
from deqreg.training.config import Config, read_config
from deqreg.training.loop import Trainer, train
from deqreg.training.objective import Objective

__all__ = ["Config", "Objective", "Trainer", "load_checkpoint", "read_config", "train"]
