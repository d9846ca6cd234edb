"""Train the encoder of the brain model to tell labels apart: the first half of the recipe behind the shipped weights.

    python benchmarks/claims/train_features.py DATASET OUT.safetensors [--steps 2000] [--seed 0]

Every label has a prototype, a unit vector; a voxel's features are to point at the prototype of its label (cosine
softmax). Features of one label in two heads are then alike and those of others are not, which is what the update looks
at. Voxels are drawn over labels by the power 0.4 of their volume, since Dice counts labels and not voxels. Heads are
mirrored, left labels for right ones, turned, scaled, shifted, bent, and changed in contrast and noise. The second half,
`deqreg train benchmarks/claims/brain.yaml`, starts from the result.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from deqreg import ops
from deqreg.data import load_cases, read_dataset
from deqreg.nets import Encoder

SPACING = 2.0  # millimetres
POINTS = 10_000  # voxels that a step looks at
WIDTHS = (32, 64, 128, 160)
RATE, WARMUP = 4e-3, 20


def box(images: Tensor, margin: int = 2) -> tuple[slice, ...]:
    """The box around everything above 1 % intensity in any of the images `[K, *S]`, with a margin."""
    seen = (images > 0.01).any(0)
    slices = []
    for axis, size in enumerate(seen.shape):
        inside = seen.movedim(axis, 0).flatten(1).any(1)
        first, last = inside.nonzero()[[0, -1], 0].tolist()
        slices.append(slice(max(first - margin, 0), min(last + margin + 1, size)))
    return tuple(slices)


class Heads:
    """Images and labels, and where each label is."""

    def __init__(self, images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> None:
        self.images, self.count, self.generator = images, count, generator
        self.shape = images.shape[1:]
        self.order, self.first, self.voxels = [], [], []
        for head in labels:
            flat = head.flatten().long()
            voxels = torch.bincount(flat, minlength=count)[:count]
            self.order.append(flat.argsort(stable=True).int())
            self.voxels.append(voxels)
            self.first.append(voxels.cumsum(0) - voxels)
        self.chance = torch.stack(self.voxels).double().mean(0) ** 0.4
        self.chance[0] = 0.12 * self.chance[1:].sum()

    @torch.no_grad()
    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """A changed head `[1, 1, *S]`, voxel positions in it `[P, 3]`, and their labels `[P]`."""
        generator = self.generator
        head = int(torch.randint(len(self.images), (), generator=generator))
        matrix, shift = self._affine()
        bend = self._bend()
        image = (self.images[head][None, None].float() / 255) ** float(
            torch.exp(0.25 * torch.randn((), generator=generator))
        )
        mapping = torch.cat([matrix, shift[:, None]], dim=1)[None]
        image = ops.warp(image, bend, affine=mapping, padding="zeros") * self._shading()
        image = image + (image > 0) * 0.02 * torch.randn(image.shape, generator=generator)
        labels = torch.multinomial(self.chance * (self.voxels[head] > 0), POINTS, True, generator=generator)
        within = (torch.rand(POINTS, generator=generator) * self.voxels[head][labels]).long()
        voxel = self.order[head][self.first[head][labels] + within].long()
        there = torch.stack(torch.unravel_index(voxel, self.shape), dim=1).float()
        unbent = (there - shift) @ torch.linalg.inv(matrix).T
        here = unbent
        for _ in range(4):  # x + bend(x) = y: bends by less than a half, so that a sixteenth of it is left
            here = unbent - at(bend, here)
        inside = ((here > 0) & (here < torch.tensor(self.shape) - 1)).all(1)
        return image, here[inside], labels[inside]

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Turns of about 5 degrees, scales of 6 % and shifts of 2 voxels, about the centre."""
        generator = self.generator
        a, b, c = (0.08 * torch.randn(3, generator=generator)).tolist()
        matrix = torch.linalg.matrix_exp(torch.tensor([[0, -a, b], [a, 0, -c], [-b, c, 0]]))
        matrix = matrix @ torch.diag(torch.exp(0.06 * torch.randn(3, generator=generator)))
        centre = (torch.tensor(self.shape) - 1) / 2
        return matrix, centre - matrix @ centre + 2 * torch.randn(3, generator=generator)

    def _bend(self) -> Tensor:
        """A smooth displacement `[1, 3, *S]` of about 1.5 voxels a component, changing over 8 voxels."""
        coarse = [size // 4 + 1 for size in self.shape]
        noise = ops.gaussian(torch.randn(1, 3, *coarse, generator=self.generator), 2.0)
        return ops.resize(noise * (1.5 / noise.std()), self.shape)

    def _shading(self) -> Tensor:
        """A smooth factor `[1, 1, *S]` of 1 give or take a tenth, as coils leave it."""
        coarse = torch.randn(1, 1, 4, 4, 4, generator=self.generator)
        return torch.exp(0.1 * ops.resize(coarse, self.shape))


def mirrored(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Heads `[K, *S]` seen in a mirror (the first axis goes from left to right), left labels for right ones.

    Two labels are twins where each overlaps the mirror image of the other best; one without a twin becomes `count`,
    which is no label. The mirror stands where twins overlap most.
    """
    sizes = torch.bincount(labels.flatten().long(), minlength=count).double()

    def overlaps(shift: int) -> Tensor:
        pairs = labels.long() * count + labels.flip(1).roll(shift, 1).long()
        both = torch.bincount(pairs.flatten(), minlength=count**2).view(count, count)
        both[0], both[:, 0] = 0, 0
        return 2 * both / (sizes[:, None] + sizes).clamp(min=1)

    found = {shift: overlaps(shift) for shift in range(-4, 5)}
    shift = max(found, key=lambda key: float(found[key].amax(1).sum()))
    twin = found[shift].argmax(1)
    alone = twin[twin] != torch.arange(count)
    twin[alone] = count
    twin[0] = 0
    return images.flip(1).roll(shift, 1), twin[labels.flip(1).roll(shift, 1).long()].to(labels.dtype)


def at(features: Tensor, points: Tensor) -> Tensor:
    """Features `[1, C, *S]` at voxel positions `[P, 3]`, `[P, C]`."""
    size = torch.tensor(features.shape[2:])
    where = ((2 * points + 1) / size - 1).flip(1)[None, None, None]
    found = functional.grid_sample(features, where, align_corners=False, padding_mode="border")
    return found[0, :, 0, 0].T


class Prototypes(nn.Module):
    """Logits of every label from unit features `[P, C]`."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(count, channels))
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.zeros(count))

    def forward(self, features: Tensor) -> Tensor:
        return features @ functional.normalize(self.vectors, dim=1).T * self.log_scale.exp() + self.bias


@torch.no_grad()
def overlap(encoder: Encoder, prototypes: Prototypes, image: Tensor, labels: Tensor, count: int) -> float:
    """Mean Dice of the nearest prototype's label with the true one."""
    features = encoder(image[None, None].float() / 255)[0].flatten(1).T
    found, labels = torch.cat([prototypes(part).argmax(1) for part in features.split(50_000)]), labels.flatten().long()
    sizes = torch.bincount(found, minlength=count) + torch.bincount(labels, minlength=count)
    both = torch.bincount(labels[found == labels], minlength=count)
    present = torch.bincount(labels, minlength=count) > 0
    present[0] = False
    return float((2 * both / sizes.clamp(min=1))[present].mean())


def train(dataset: str, out: Path, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    listed = read_dataset(dataset)
    validation = [pair[0] for pair in listed.validation_pairs[:2]]
    cases = load_cases([*listed.training, *validation], spacing=SPACING)
    count = len(next(iter(cases.values())).values)

    def stacked(wanted: list) -> tuple[Tensor, Tensor]:
        return tuple(torch.stack([getattr(cases[c.image], name) for c in wanted]) for name in ("stored", "labels"))

    seen = stacked(listed.training)
    images, labels = (torch.cat(both) for both in zip(seen, mirrored(*seen, count), strict=True))
    where = (slice(None), *box(images / 255))
    heads = Heads(images[where], labels[where], count, torch.Generator().manual_seed(seed))
    unseen = [part[where] for part in stacked(validation)]
    encoder = Encoder(widths=WIDTHS)
    prototypes = Prototypes(count, encoder.channels)
    parameters = [*encoder.parameters(), *prototypes.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-4)
    print(f"{len(images)} heads of {list(images[where].shape[1:])}, {count - 1} labels", flush=True)
    log, losses, hits, started, cpu = [], [], [], time.perf_counter(), time.process_time()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (0.01 + 0.5 * (1 + math.cos(math.pi * step / steps)))
        image, points, truth = heads.draw()
        logits = prototypes(functional.normalize(at(encoder(image), points), dim=1))
        loss = functional.cross_entropy(logits, truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        hits.append((logits.argmax(1) == truth).float().mean().item())
        if (step + 1) % 25 == 0 or step + 1 == steps:
            entry = {"step": step + 1, "loss": sum(losses) / len(losses), "accuracy": sum(hits) / len(hits)}
            if (step + 1) % 100 == 0 or step + 1 == steps:
                scores = [overlap(encoder, prototypes, i, t, count) for i, t in zip(*unseen, strict=True)]
                entry["validation_dice"] = sum(scores) / len(scores)
            seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
            log.append({**entry, **seconds})
            print(" ".join(f"{key} {value:.4g}" for key, value in log[-1].items()), flush=True)
            losses, hits = [], []
            write(out, encoder, log)


def write(out: Path, encoder: Encoder, log: list) -> None:
    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"encoder.{name}": value.contiguous() for name, value in encoder.state_dict().items()}, out)
    out.with_suffix(".json").write_text(json.dumps(log, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.dataset, arguments.out, arguments.steps, arguments.seed)
