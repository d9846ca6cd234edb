"""Does the shipped network converge on heads that it has not seen, and stay? Anderson's iteration against plain steps.

    python benchmarks/claims/convergence.py DATASET

Every `registration_val` pair, the update on its 4 mm level, 200 evaluations whatever the residual. Prints the
steps to each tolerance and Dice along the way; writes benchmarks/results/claims_convergence.json and .png.
"""

import argparse
from typing import Any

import torch
from slices import RESULTS, dice, write
from torch import Tensor

from deqreg.data import load_cases, read_dataset
from deqreg.equilibrium import Anderson, Picard, fixed_point
from deqreg.nets import DEQReg
from deqreg.nets.pretrained import load_weights, packaged
from deqreg.nets.recurrent import State

STEPS = 200
LOOKS = (1, 2, 4, 6, 8, 10, 15, 20, 30, 50, 75, 100, 150, 200)
TOLERANCES = (1e-2, 3e-3, 1e-3)
SOLVERS = {
    "anderson": Anderson(memory=8, tol=0.0, max_steps=STEPS, norm="rms", patience=None),
    "picard": Picard(tol=0.0, max_steps=STEPS, norm="rms", patience=None),
}


def follow(net: DEQReg, pair: tuple[Tensor, Tensor, Tensor, Tensor], solver: Anderson | Picard) -> dict[str, Any]:
    """Residuals step by step, and Dice of what `f` gave at the steps looked at."""
    fixed, moving, f, m = pair
    update, state = net.prepare(fixed, moving)
    values: list[float] = []
    taken = 0

    def watched(z: State) -> State:
        nonlocal taken
        taken += 1
        value = update(z)
        if taken in LOOKS:
            values.append(dice(net.displacement(value, fixed.shape[2:]), f, m))
        return value

    solution = fixed_point(watched, state, solver=solver)
    residuals = solution.residuals[:, 0].tolist()
    reached = {str(t): next((i + 1 for i, r in enumerate(residuals) if r <= t), None) for t in TOLERANCES}
    return {"residual": [float(f"{r:.4g}") for r in residuals], "dice": values, "steps_to": reached}


def draw(result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name, colour in zip(SOLVERS, ("#b8620a", "#4a6fa5"), strict=True):
        for number, row in enumerate(result["pairs"].values()):
            label = name if number == 0 else None
            axes[0].plot(range(1, STEPS + 1), row[name]["residual"], color=colour, lw=1, label=label)
            axes[1].plot(LOOKS, row[name]["dice"], color=colour, lw=1)
    axes[0].set(xscale="log", yscale="log", xlabel="evaluations", title="residual (rms, voxels of 4 mm)")
    axes[1].set(xscale="log", xlabel="evaluations", title="Dice, pairs not trained on")
    axes[0].legend()
    figure.savefig(RESULTS / "claims_convergence.png", dpi=120)


def main(dataset: str) -> None:
    listed, (net, facts) = read_dataset(dataset), load_weights(packaged("brain"))
    net = net.coarsest()
    cases = load_cases([case for pair in listed.validation_pairs for case in pair], spacing=facts["spacing"])
    result: dict[str, Any] = {"looks": list(LOOKS), "pairs": {}}
    for fixed, moving in listed.validation_pairs:
        f, m = (cases[case.image] for case in (fixed, moving))
        images = (f.stored[None, None].float() / 255, m.stored[None, None].float() / 255)
        name = " on ".join(case.image.name.split(".")[0] for case in (moving, fixed))
        pair = (*images, f.labels[None].long(), m.labels[None].long())
        row = {way: follow(net, pair, solver) for way, solver in SOLVERS.items()}
        result["pairs"][name] = row
        for way, found in row.items():
            steps = ", ".join(f"{t} after {n or 'more'}" for t, n in found["steps_to"].items())
            print(
                f"{name} {way:9} residual {steps}; {found['residual'][-1]:.1e} at {STEPS}; Dice best "
                f"{max(found['dice']):.4f}, at {STEPS} {found['dice'][-1]:.4f}",
                flush=True,
            )
        write("claims_convergence", result)
    draw(result)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    main(parser.parse_args().dataset)
