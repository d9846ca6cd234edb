"""Train the encoder of the brain model to tell labels apart: the first half of the recipe behind the shipped weights.

    python benchmarks/claims/train_features.py DATASET out/coarse.safetensors --spacing 2
    python benchmarks/claims/train_features.py DATASET out/features.safetensors --deeper out/coarse.safetensors
    python benchmarks/claims/train_features.py DATASET out/more.safetensors --initial out/features.safetensors

Voxels are drawn over labels by the power 0.4 of their volume, since Dice counts labels and not voxels. Heads are
mirrored, left labels for right ones, turned, scaled, shifted, bent, and changed in contrast and noise.

Features have twice the voxel edge of the images. What an encoder of images at 1 mm does at 4 mm and beyond, one of
images at 2 mm learns in two fifths of the time a step. The second half, `deqreg train benchmarks/claims/brain.yaml`,
starts from the result.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from deqreg import ops
from deqreg.data import load_cases, read_dataset
from deqreg.nets import Encoder

STRIDE = 2  # voxel edge of the features, in voxels of the images
POINTS = 20_000  # voxels that a step looks at
WIDTHS = {2: (32, 64, 128, 160), 1: (32, 32, 64, 128, 160)}
WARMUP = 40  # steps


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

    def __init__(self, images: Tensor, labels: Tensor, count: int, spacing: int, generator: torch.Generator) -> None:
        self.images, self.count, self.spacing, self.generator = images, count, spacing, generator
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
            here = unbent - at(bend, here, 1)
        inside = ((here > 0) & (here < torch.tensor(self.shape) - 1)).all(1)
        return image, here[inside], labels[inside]

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Turns of about 5 degrees, scales of 6 % and shifts of 4 mm, about the centre."""
        generator = self.generator
        a, b, c = (0.08 * torch.randn(3, generator=generator)).tolist()
        matrix = torch.linalg.matrix_exp(torch.tensor([[0, -a, b], [a, 0, -c], [-b, c, 0]]))
        matrix = matrix @ torch.diag(torch.exp(0.06 * torch.randn(3, generator=generator)))
        centre = (torch.tensor(self.shape) - 1) / 2
        return matrix, centre - matrix @ centre + 4 / self.spacing * torch.randn(3, generator=generator)

    def _bend(self) -> Tensor:
        """A smooth displacement `[1, 3, *S]` of about 3 mm a component, changing over 16 mm."""
        coarse = [size * self.spacing // 8 + 1 for size in self.shape]
        noise = ops.gaussian(torch.randn(1, 3, *coarse, generator=self.generator), 2.0)
        return ops.resize(noise * (3 / self.spacing / noise.std()), self.shape)

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


def at(features: Tensor, points: Tensor, stride: int) -> Tensor:
    """Features `[1, C, *S]` at voxel positions `[P, 3]` of the image that they come from, `[P, C]`."""
    size = torch.tensor(features.shape[2:]) * stride
    where = ((2 * points + 1) / size - 1).flip(1)[None, None, None]
    found = functional.grid_sample(features, where, align_corners=False, padding_mode="border")
    return found[0, :, 0, 0].T


def read(encoder: Encoder, trunk: Tensor, points: Tensor) -> Tensor:
    """Logits of the labels at voxel positions `[P, 3]` of the image, `[P, labels]`."""
    return encoder.head.read(at(trunk, points, encoder.stride))


@torch.no_grad()
def overlap(encoder: Encoder, image: Tensor, labels: Tensor, count: int) -> float:
    """Mean Dice of the likeliest label with the true one."""
    trunk, labels = encoder.trunk(image[None, None].float() / 255), labels.flatten().long()
    parts = torch.arange(len(labels)).split(50_000)
    points = (torch.stack(torch.unravel_index(part, image.shape), dim=1).float() for part in parts)
    found = torch.cat([read(encoder, trunk, these).argmax(1) for these in points])
    sizes = torch.bincount(found, minlength=count) + torch.bincount(labels, minlength=count)
    both = torch.bincount(labels[found == labels], minlength=count)
    present = torch.bincount(labels, minlength=count) > 0
    present[0] = False
    return float((2 * both / sizes.clamp(min=1))[present].mean())


def take_deeper(encoder: Encoder, path: Path) -> None:
    """All but the finest scale, from an encoder of images at half the resolution."""
    own = encoder.state_dict()
    for name, value in load_file(path).items():
        part, _, rest = name.removeprefix("encoder.").partition(".")
        if part in ("down", "widen", "narrow", "up", "more"):
            scale, _, inside = rest.partition(".")
            own[f"{part}.{int(scale) + 1}.{inside}"] = value
    encoder.load_state_dict(own)


def spread(codes: Tensor) -> Tensor:
    """Unit vectors `[K, C]` pushed apart until no two are close; the first, the background's, stays zero.

    Of 144 random ones in 16 dimensions two have a product of 0.8; of these, none has more than 0.3.
    """
    vectors = codes[1:].clone().requires_grad_()
    optimiser = torch.optim.Adam([vectors], lr=0.02)
    for _ in range(500):
        unit = functional.normalize(vectors, dim=1)
        products = unit @ unit.T - 2 * torch.eye(len(unit))
        optimiser.zero_grad()
        torch.logsumexp(20 * products, (0, 1)).backward()
        optimiser.step()
    return torch.cat([codes[:1], functional.normalize(vectors.detach(), dim=1)])


def train(arguments: argparse.Namespace) -> None:
    dataset, out, steps, spacing = arguments.dataset, arguments.out, arguments.steps, arguments.spacing
    torch.manual_seed(arguments.seed)
    listed = read_dataset(dataset)
    validation = [pair[0] for pair in listed.validation_pairs[:2]]
    cases = load_cases([*listed.training, *validation], spacing=spacing)
    count = len(next(iter(cases.values())).values)

    def stacked(wanted: list) -> tuple[Tensor, Tensor]:
        return tuple(torch.stack([getattr(cases[c.image], name) for c in wanted]) for name in ("stored", "labels"))

    seen = stacked(listed.training)
    images, labels = (torch.cat(both) for both in zip(seen, mirrored(*seen, count), strict=True))
    where = (slice(None), *box(images / 255))
    heads = Heads(images[where], labels[where], count, spacing, torch.Generator().manual_seed(arguments.seed))
    unseen = [part[where] for part in stacked(validation)]
    encoder = Encoder(widths=WIDTHS[spacing], stride=STRIDE, labels=count)
    encoder.head.codes.copy_(spread(encoder.head.codes))
    if arguments.deeper is not None:
        take_deeper(encoder, arguments.deeper)
    if arguments.initial is not None:
        state = load_file(arguments.initial)
        encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in state.items()})
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=arguments.rate, weight_decay=1e-4)
    print(f"{len(images)} heads of {list(images[where].shape[1:])}, {count - 1} labels", flush=True)
    log, losses, hits, started, cpu = [], [], [], time.perf_counter(), time.process_time()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = (
                arguments.rate * min(1, (step + 1) / WARMUP) * (0.01 + 0.5 * (1 + math.cos(math.pi * step / steps)))
            )
        image, points, truth = heads.draw()
        with torch.autocast("cpu", torch.bfloat16):
            trunk = encoder.trunk(image)
        logits = read(encoder, trunk.float(), points)
        loss = functional.cross_entropy(logits, truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        hits.append((logits.argmax(1) == truth).float().mean().item())
        if (step + 1) % 25 == 0 or step + 1 == steps:
            entry = {"step": step + 1, "loss": sum(losses) / len(losses), "accuracy": sum(hits) / len(hits)}
            if (step + 1) % 100 == 0 or step + 1 == steps:
                scores = [overlap(encoder, i, t, count) for i, t in zip(*unseen, strict=True)]
                entry["validation_dice"] = sum(scores) / len(scores)
            seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
            log.append({**entry, **seconds})
            print(" ".join(f"{key} {value:.4g}" for key, value in log[-1].items()), flush=True)
            losses, hits = [], []
            write(out, encoder, log)


def write(out: Path, encoder: Encoder, log: list) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = encoder.state_dict(prefix="encoder.")
    save_file({name: value.contiguous() for name, value in parts.items()}, out)
    out.with_suffix(".json").write_text(json.dumps(log, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--spacing", type=int, choices=sorted(WIDTHS), default=1, help="of the images, millimetres")
    parser.add_argument("--deeper", type=Path, help="features of images at twice the spacing, to start from")
    parser.add_argument("--initial", type=Path, help="features of images at the same spacing, to go on from")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
