"""A small set in the layout of Learn2Reg's NLST task, made of the demo pair by known deformations."""

import json
from pathlib import Path

import numpy as np
import torch

from deqreg import io, ops
from deqreg.data import Augmentation
from deqreg.spatial import Grid, resample, resize, sample

SOURCE = Path(__file__).parents[2] / "examples" / "data" / "lung"
EDGE = 7.0  # millimetres
BREATH = Augmentation(amplitude=8.0, smoothness=25.0)


def write_lungs(folder, patients=3):
    """Patients 1 ... patients, the last for validation: each a lung of the demo, deformed, and the same after a breath."""
    for name in ("imagesTr", "masksTr", "keypointsTr"):
        (folder / name).mkdir()
    entries, pairs = [], []
    for patient in range(1, patients + 1):
        names = [f"NLST_{patient:04d}_{time:04d}" for time in (0, 1)]
        write_patient(folder, names, patient)
        entries += [
            {"image": f"./imagesTr/{name}.nii.gz", "mask": f"./masksTr/{name}.nii.gz",
             "keypoints": f"./keypointsTr/{name}.csv"}
            for name in names
        ]  # fmt: skip
        pairs.append({role: f"./imagesTr/{name}.nii.gz" for role, name in zip(("fixed", "moving"), names, strict=True)})
    content = {"name": "lungs", "training": entries, "training_paired_images": pairs, "registration_val": pairs[-1:]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def write_patient(folder, names, seed):
    role = ("fixed", "moving")[seed % 2]
    volume = io.read_image(SOURCE / f"{role}.nii.gz")
    mask = io.read_mask(SOURCE / f"{role}_mask.nii.gz", volume)
    grid = Grid(tuple(volume.data.shape), torch.from_numpy(volume.matrix))
    coarse = grid.resized([round(n * h / EDGE) for n, h in zip(grid.shape, grid.spacing, strict=True)])
    image = resize(volume.data[None, None], coarse.shape)
    inside = resample(mask.data[None, None], grid, coarse, interpolation="nearest")
    generator = torch.Generator().manual_seed(seed)
    shape, breath = [BREATH.velocity(coarse.shape, coarse.spacing, generator) for _ in range(2)]
    person = [ops.warp(part, ops.exponential(shape)) for part in (image, inside)]
    breathed = [ops.warp(part, ops.exponential(breath)) for part in person]
    # what is at x after the breath was at x + u(x) before: the image before is the moving one
    where = (breathed[1][0, 0] > 0.9).nonzero()
    chosen = where[torch.randperm(len(where), generator=generator)[:60]].float()[None]
    points = chosen, chosen + sample(ops.exponential(breath), chosen)
    kept = ((points[1] >= 0) & (points[1] <= torch.tensor(coarse.shape) - 1)).all(2)[0]
    for name, (data, region), at in zip(names, (breathed, person), points, strict=True):
        io.write_volume(
            folder / "imagesTr" / f"{name}.nii.gz", data[0, 0].round(), coarse.affine.numpy(), dtype=np.int16
        )
        region = region[0, 0] > 0.5
        io.write_volume(folder / "masksTr" / f"{name}.nii.gz", region, coarse.affine.numpy(), dtype=np.uint8)
        rows = (",".join(f"{value:.3f}" for value in point) for point in at[0][kept].tolist())
        (folder / "keypointsTr" / f"{name}.csv").write_text("\n".join(rows) + "\n")
