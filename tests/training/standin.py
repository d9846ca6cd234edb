"""A network small enough for tests, and data small enough for it: shared by the tests and the processes they start."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deqreg import io, ops
from deqreg.data import Pairs, load_cases, read_dataset
from deqreg.data.pairs import all_pairs
from deqreg.equilibrium import fixed_point
from deqreg.training import Trainer, read_config
from deqreg.training.processes import processes


class StandIn(nn.Module):
    """A contracting update of a field and a hidden state, at half resolution, from a shared encoder of both images."""

    def __init__(self, solver, adjoint, channels=4):
        super().__init__()
        self.solver, self.adjoint, self.channels = solver, adjoint, channels
        self.encoder = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.update = nn.Conv2d(3 * channels + 2, channels + 2, 3, padding=1)

    def config(self):
        return {"channels": self.channels}

    def prepare(self, fixed, moving):
        features = [torch.tanh(self.encoder(image)).float() for image in (fixed, moving)]
        size = features[0].shape

        def f(z):
            u, h = z
            warped = ops.warp(features[1], u)
            new = self.update(torch.cat([features[0], warped, h, u], dim=1))
            return 0.5 * u + torch.tanh(new[:, :2]), 0.5 * torch.tanh(new[:, 2:])

        zeros = fixed.new_zeros
        return f, (zeros(size[0], 2, *size[2:]), zeros(size))

    def displacement(self, z, shape):
        return 2 * functional.interpolate(z[0], size=tuple(shape), mode="bilinear")

    def forward(self, fixed, moving):
        f, z0 = self.prepare(fixed, moving)
        solution = fixed_point(f, z0, solver=self.solver, adjoint=self.adjoint)
        return self.displacement(solution.value, fixed.shape[2:]), solution


def write_dataset(folder, count=4, shape=(24, 20), paired=False):
    """Blobs in a plane, their labels and landmarks: the first two for validation."""
    generator = torch.Generator().manual_seed(0)
    names = [f"{number}" for number in range(count)]
    for name in names:
        image = ops.gaussian(torch.rand(1, 1, *shape, generator=generator), 2.0)[0, 0]
        image = 1000 * (image - image.min()) / (image.max() - image.min())
        io.write_volume(folder / f"{name}.nii.gz", image, np.diag([1.5, 1.5, 1.0, 1.0]))
        labels = (image > image.median()).int() + 2 * (image > image.quantile(0.9)).int()
        io.write_volume(folder / f"{name}_labels.nii.gz", labels, np.diag([1.5, 1.5, 1.0, 1.0]), dtype=np.uint8)
    entries = [{"image": f"./{name}.nii.gz", "label": f"./{name}_labels.nii.gz"} for name in names]
    content = {
        "name": "blobs",
        "training": entries[2:],
        "validation": entries[:2],
        "registration_val": [{"fixed": "./0.nii.gz", "moving": "./1.nii.gz"}],
    }
    if paired:
        content["training_paired_images"] = [{"fixed": "./2.nii.gz", "moving": "./3.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


CONFIG = """
output: {output}
data: {{dataset: {data}}}
solver: {{kind: anderson, memory: 3, tol: 1e-4, max_steps: 30}}
adjoint: {{kind: phantom, steps: 3}}
loss: {{window: 5, smoothness: 0.1, dice: 0.5, known: 0.1, folding: 1}}
correction: {{count: 2}}
jacobian: {{weight: 0.01, probability: 0.5}}
augmentation: {{flip: [0], deform: 0.5, synthetic: 0.3, amplitude: 1, smoothness: 6, gamma: 0.1, contrast: 0.1, noise: 0.02}}
optimiser: {{rate: 1e-2, warmup: 2}}
steps: 12
log_every: 1
validate_every: 6
checkpoint_every: 4
"""


def write_config(folder, data, **changes):
    path = folder / "train.yaml"
    path.write_text(CONFIG.format(output=folder / "out", data=data))
    return read_config(path, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])


def make_trainer(config, here, net=StandIn):
    data = read_dataset(config.data.dataset)
    pairs = data.training_pairs or all_pairs(data.training)
    cases = load_cases([case for pair in (*pairs, *data.validation_pairs) for case in pair])
    torch.manual_seed(config.seed)
    training = Pairs(pairs, cases, config.seed, config.augmentation)
    validation = Pairs(data.validation_pairs, cases)
    return Trainer(config, net(config.solver, config.adjoint), training, validation, here)


def main(path, resume, *changes):
    """What the tests start as a process of its own: a training, or its gradient at the first step."""
    config = read_config(path, [change for change in changes if change != "gradient"])
    with processes("cpu") as here:
        trainer = make_trainer(config, here)
        if "gradient" in changes:
            trainer.gradients()
            gradients = {name: value.grad for name, value in trainer.net.named_parameters()}
            torch.save(gradients, Path(config.output) / f"gradient{here.rank}.pt")
            return 0
        if resume == "resume":
            trainer.resume()
        trainer.listeners.append(lambda record: print(record["kind"], record["step"], flush=True))
        return trainer.run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
