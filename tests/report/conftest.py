from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deqreg import io


def blob(shape, affine, seed=0):
    """Smooth random tissue in an ellipsoid, dark around it."""
    generator = np.random.default_rng(seed)
    coordinates = np.meshgrid(*[np.linspace(-1.3, 1.3, size) for size in shape], indexing="ij")
    inside = sum(c**2 for c in coordinates) < 1
    waves = sum(np.sin(generator.uniform(3, 8) * c + generator.uniform(0, 6)) for c in coordinates)
    data = np.where(inside, 100 + 20 * waves, 0).astype(np.float32)
    return io.Volume(torch.from_numpy(data), affine, name="fixed image fixed.nii.gz")


def report_of(**more):
    """The figures that `Registration.report()` gives, for a registration of one level."""
    level = {
        "shape": [16, 16, 16],
        "spacing": [2.0, 2.0, 2.0],
        "steps": 5,
        "status": "converged",
        "sentence": "The field moved by less than the tolerance.",
        "residuals": [1.0, 0.3, 0.1, 0.02, 0.001],
        "similarity_before": 0.2,
        "similarity_after": 0.6,
        "seconds": 0.5,
        "jacobian_range": [0.6, 1.7],
    }
    return {
        "status": "converged",
        "sentence": "Converged at every level.",
        "similarity": {"before": 0.2, "after": 0.6},
        "verdict": "plausible",
        "folding_percent": 0.0,
        "sd_log_jacobian": 0.25,
        "seconds": {"read": 0.1, "affine": 1.0, "level 1": 0.5, "total": 1.6},
        "settings": {"preset": "auto", "window": 9},
        "versions": {"deqreg": "0.1.0"},
        "levels": [level],
        "warnings": [],
    } | more


@pytest.fixture
def registration():
    """Give a maker of what a picture needs of a registration: a moving image that bulges, on a grid of any kind."""

    def make(shape=(20, 24, 18), affine=None, mask=False, amplitude=3.0):
        affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
        fixed = blob(shape, affine)
        d = len(shape)
        wave = torch.sin(torch.linspace(0, 6.28, shape[0])).view(-1, *[1] * (d - 1)).expand(shape)
        displacement = torch.stack([amplitude * wave] * d)
        inside = io.Volume((fixed.data > 0).float(), affine) if mask else None
        return SimpleNamespace(
            fixed=fixed,
            moving=io.Volume(fixed.data, affine, name="moving image moving.nii.gz"),
            displacement=displacement,
            affine=np.eye(d + 1),
            warped=2 * fixed.data + 3,
            affine_warped=2 * fixed.data.roll(1, 0) + 3,
            fixed_mask=inside,
            sentence="Converged at every level.",
            report=report_of,
        )

    return make
