"""Data to train on: Learn2Reg-style datasets, held in memory, and the pairs made of them."""

from deqreg.data.augmentation import Augmentation
from deqreg.data.cache import CachedCase, load_cases, read_points
from deqreg.data.dataset import Case, Dataset, read_dataset
from deqreg.data.pairs import Batch, Pairs, Sampler

__all__ = [
    "Augmentation",
    "Batch",
    "CachedCase",
    "Case",
    "Dataset",
    "Pairs",
    "Sampler",
    "load_cases",
    "read_dataset",
    "read_points",
]
