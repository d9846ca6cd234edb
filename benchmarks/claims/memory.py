"""Peak memory of a training step: equilibrium against backpropagation through time.

    python benchmarks/claims/memory.py [--volume]

A training step of the 3-D network, forward, backward and the optimiser's, on random images, in a process of its own,
with the solver made to take every step allowed; the peak is that of the whole process on a CPU, of torch's allocator on
a GPU. First against the number of steps, on heads at 2 mm; then, with --volume, on 160 x 192 x 224 voxels, where also
the update alone is trained, behind an encoder that stays as it is, as the weights that ship were. A process that needs
more than 16 GiB is stopped. Writes benchmarks/results/claims_memory.json and .png.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from typing import Any

import torch
from slices import RESULTS, write

from deqreg import losses, ops
from deqreg.equilibrium import Anderson, Implicit, Phantom, Unrolled
from deqreg.nets import DEQReg
from deqreg.registration import peak_memory

STEPS = (6, 12, 24, 48, 96)
HEAD, VOLUME = (88, 104, 88), (160, 192, 224)
LIMIT = 16 * 2**30
WAYS = ("implicit", "phantom", "unrolled")
# the encoder of the weights that ship
SHIPPED = {"encoder_stride": 2, "labels": 145, "widths": (32, 32, 64, 128, 160)}


def step(way: str, steps: int, shape: tuple[int, ...], stride: int, update_alone: bool) -> float:
    """Take one training step in this process; returns its peak in MiB."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    # the backward solve is allowed as many steps as the forward one
    linear = Anderson(memory=4, tol=0.0, max_steps=steps, patience=None)
    adjoint = {"implicit": Implicit(solver=linear), "phantom": Phantom(steps=3), "unrolled": Unrolled(steps=steps)}[way]
    solver = Anderson(memory=4, tol=0.0, max_steps=steps, norm="rms", patience=None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = DEQReg(strides=(stride,), solver=solver, adjoint=adjoint, **(SHIPPED if update_alone else {})).to(device)
    net.encoder.requires_grad_(not update_alone)
    optimiser = torch.optim.AdamW(parameter for parameter in net.parameters() if parameter.requires_grad)
    fixed, moving = (ops.gaussian(torch.rand(1, 1, *shape, device=device), 2.0) for _ in range(2))
    displacement, _ = net(fixed, moving)
    similarity = losses.lncc(fixed, ops.warp(moving, displacement), window=5)
    (similarity + losses.diffusion(displacement)).mean().backward()
    optimiser.step()
    return (torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()) / 2**20


def measured(way: str, steps: int, shape: tuple[int, ...], stride: int = 2, update_alone: bool = False) -> float | None:
    """The same in a process of its own; None where that was stopped for want of memory."""
    job = json.dumps([way, steps, shape, stride, update_alone])
    # Without transparent huge pages, and with arrays apart from glibc's heap: how many pages are held beside what lives
    # would depend on how memory happens to lie.
    environment = {
        **os.environ, "THP_MEM_ALLOC_ENABLE": "0", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)
    }  # fmt: skip
    done = subprocess.run([sys.executable, __file__, "--job", job], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        if done.returncode > 0 and "memory" not in done.stderr.lower():
            raise RuntimeError(done.stderr)
        return None
    return float(done.stdout.split()[-1])


def against_steps() -> dict[str, Any]:
    result: dict[str, Any] = {"steps": list(STEPS), "shape": list(HEAD), "peak_mebibytes": {}}
    print("steps     " + "".join(f"{steps:>9}" for steps in STEPS) + "   growth 6 to 96")
    for way in WAYS:
        found = [measured(way, steps, HEAD) for steps in STEPS]
        result["peak_mebibytes"][way] = found
        cells = "".join(f"{value:9.0f}" if value else f"{'-':>9}" for value in found)
        growth = f"{100 * (found[-1] / found[0] - 1):.1f} %" if found[0] and found[-1] else ""
        print(f"{way:10}{cells}   {growth}", flush=True)
    return result


def on_volume(update_alone: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"shape": list(VOLUME), "peak_mebibytes": {}}
    print("the update alone" if update_alone else "encoder and update")
    for way, steps in (("implicit", 12), ("phantom", 12), ("unrolled", 2), ("unrolled", 4), ("unrolled", 12)):
        found = measured(way, steps, VOLUME, update_alone=update_alone)
        result["peak_mebibytes"][f"{way}, {steps} steps"] = found
        print(f"{way}, {steps} steps: {f'{found:.0f} MiB' if found else 'more than 16 GiB'}", flush=True)
    return result


def draw(result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.6), layout="constrained")
    for way, values in result["peak_mebibytes"].items():
        axis.plot(result["steps"], values, "o-", label=way)
    axis.set(xlabel="steps of the solver", ylabel="peak MiB of a training step")
    axis.legend()
    figure.savefig(RESULTS / "claims_memory.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", action="store_true", help="the large volume too")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(step(*json.loads(args.job)))
        return
    result: dict[str, Any] = {"head": against_steps()}
    draw(result["head"])
    if args.volume:
        result["volume"], result["volume, update alone"] = on_volume(False), on_volume(True)
    write("claims_memory", result)


if __name__ == "__main__":
    main()
