"""What the experiments share: slices of heads, a small 2-D network, and one way to train it, whatever the adjoint."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqreg import losses, metrics, ops
from deqreg.data import load_cases, read_dataset
from deqreg.nets import DEQReg

RESULTS = Path(__file__).resolve().parents[1] / "results"
# axial slices at 2 mm from the basal ganglia to the centrum semiovale, the same places in every head
PLACES = range(36, 60, 4)


@dataclass(frozen=True, eq=False)
class Slices:
    """Images `[K, P, *S]` in [0, 1] and labels of K heads at P places."""

    images: Tensor
    labels: Tensor
    count: int
    pairs: tuple[tuple[int, int], ...]

    def batch(self, pairs: list[tuple[int, int]], places: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fixed and moving images `[N, 1, *S]` and labels `[N, *S]`."""
        fixed, moving = (torch.tensor([pair[side] for pair in pairs]) for side in (0, 1))
        where = torch.tensor(places)
        return (
            self.images[fixed, where][:, None],
            self.images[moving, where][:, None],
            self.labels[fixed, where],
            self.labels[moving, where],
        )


def load(dataset: str) -> tuple[Slices, Slices]:
    """Training and validation slices; the split is the file's."""
    listed = read_dataset(dataset)
    unseen = list({case.image: case for pair in listed.validation_pairs for case in pair}.values())
    cases = load_cases([*listed.training, *unseen], spacing=2.0)
    count = len(next(iter(cases.values())).values)

    def sliced(wanted: list) -> tuple[Tensor, Tensor]:
        found = [cases[case.image] for case in wanted]
        images = torch.stack([case.stored[..., list(PLACES)].movedim(-1, 0) for case in found]).float() / 255
        labels = torch.stack([case.labels[..., list(PLACES)].movedim(-1, 0) for case in found]).long()
        return images, labels

    heads = len(listed.training)
    every = tuple((i, j) for i in range(heads) for j in range(heads) if i != j)
    names = [case.image for case in unseen]
    held = tuple((names.index(f.image), names.index(m.image)) for f, m in listed.validation_pairs)
    return Slices(*sliced(list(listed.training)), count, every), Slices(*sliced(unseen), count, held)


def network(seed: int = 0, **changes: Any) -> DEQReg:
    """The network of the experiments; the same initial weights for one seed."""
    torch.manual_seed(seed)
    settings = {"dims": 2, "channels": 8, "widths": (16, 32, 48), "strides": (1,), "kernel": 3}
    return DEQReg(**{**settings, **changes})


def objective(displacement: Tensor, fixed: Tensor, moving: Tensor, f: Tensor, m: Tensor, count: int) -> Tensor:
    """Soft Dice, local correlation and smoothness."""
    similarity = losses.lncc(fixed, ops.warp(moving, displacement), window=5)
    overlap = losses.soft_dice(displacement, f, m, count)
    return (2 * overlap + similarity + 0.5 * losses.diffusion(displacement)).mean()


def train(net: DEQReg, data: Slices, seconds: float, rate: float = 2e-3, batch: int = 4) -> dict[str, Any]:
    """Train for a time of the processor, the same for every way; half a cosine."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate)
    started, steps, curve = time.process_time(), 0, []
    while (done := (time.process_time() - started) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (steps + 1) / 10) * (0.02 + 0.5 * (1 + math.cos(math.pi * done)))
        chosen = torch.randint(len(data.pairs), (batch,), generator=generator).tolist()
        places = torch.randint(len(PLACES), (batch,), generator=generator).tolist()
        parts = data.batch([data.pairs[i] for i in chosen], places)
        displacement, _ = net(parts[0], parts[1])
        loss = objective(displacement, *parts, data.count)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        steps += 1
        curve.append(loss.item())
    last = curve[-max(1, len(curve) // 10) :]
    return {"steps": steps, "cpu_seconds": time.process_time() - started, "loss": sum(last) / len(last)}


def dice(displacement: Tensor, f: Tensor, m: Tensor) -> float:
    """Mean over pairs of the mean Dice over labels."""
    warped = ops.warp(m[:, None].float(), displacement, interpolation="nearest")[:, 0]
    return sum(metrics.mean_over_labels(metrics.dice(a, b)) for a, b in zip(f, warped, strict=True)) / len(f)


def everything(data: Slices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All listed pairs at all places, as one batch."""
    combined = [(pair, place) for pair in data.pairs for place in range(len(PLACES))]
    return data.batch([pair for pair, _ in combined], [place for _, place in combined])


def write(name: str, result: dict[str, Any]) -> None:
    """`benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
