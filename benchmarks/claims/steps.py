"""Accuracy and residual against inference steps, of one update trained as an equilibrium and unrolled.

    python benchmarks/claims/steps.py DATASET [--seconds 60]

The same network, initial weights, slices, loss, learning rate and processor time for each way of training: the
phantom and the implicit gradient of the equilibrium, backpropagation through 4, 8 and 12 steps; and the equilibrium of
the plain update, without the classical step inside. Each is then run for up to 200 plain steps on pairs of heads that
it has not seen, and solved by Anderson's and by Picard's iteration. Writes benchmarks/results/claims_steps.json, .png.
"""

import argparse
import time
from typing import Any

import torch
from slices import RESULTS, Slices, dice, everything, load, network, train, write

from deqreg.equilibrium import Anderson, Implicit, Phantom, Picard, Unrolled, fixed_point
from deqreg.equilibrium.stopping import residual
from deqreg.nets import DEQReg

SOLVER = Anderson(memory=4, tol=1e-3, max_steps=40, norm="rms", patience=None)
WAYS: dict[str, dict[str, Any]] = {
    "equilibrium, phantom": {"adjoint": Phantom(steps=3)},
    "equilibrium, implicit": {"adjoint": Implicit(solver=Anderson(tol=1e-2, max_steps=15))},
    "unrolled, T = 4": {"adjoint": Unrolled(steps=4)},
    "unrolled, T = 8": {"adjoint": Unrolled(steps=8)},
    "unrolled, T = 12": {"adjoint": Unrolled(steps=12)},
    "equilibrium, phantom, plain update": {"adjoint": Phantom(steps=3), "bridge": False},
}
LOOKS = (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 160, 200)


@torch.no_grad()
def walk(net: DEQReg, data: Slices) -> dict[str, list[float]]:
    """Dice and the mean residual, in the state's units, after each number of plain steps."""
    fixed, moving, f, m = everything(data)
    update, state = net.prepare(fixed, moving)
    scores, residuals = [], []
    for step in range(1, LOOKS[-1] + 1):
        value = update(state)
        if step in LOOKS:
            residuals.append(float(residual(state, value, "rms").mean()))
            scores.append(dice(net.displacement(value, fixed.shape[2:]), f, m))
        state = value
    return {"steps": list(LOOKS), "dice": scores, "residual": residuals}


@torch.no_grad()
def solve(net: DEQReg, data: Slices, solver: Anderson | Picard) -> dict[str, float]:
    """Steps, share converged, Dice and time of a solver."""
    fixed, moving, f, m = everything(data)
    update, state = net.prepare(fixed, moving)
    started = time.process_time()
    solution = fixed_point(update, state, solver=solver)
    seconds = time.process_time() - started
    converged = sum(status.value == "converged" for status in solution.statuses) / len(solution.statuses)
    return {
        "steps": float(solution.steps.double().mean()),
        "converged": converged,
        "residual": float(solution.residuals[-1].mean()),
        "dice": dice(net.displacement(solution.value, fixed.shape[2:]), f, m),
        "cpu_seconds": seconds,
    }


def draw(result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name, way in result["ways"].items():
        style = "--" if "unrolled" in name else "-"
        for axis, key in zip(axes, ("dice", "residual"), strict=True):
            axis.plot(way["walk"]["steps"], way["walk"][key], style, label=name)
    for axis, title in zip(axes, ("Dice, unseen pairs", "residual (rms)"), strict=True):
        axis.set(xscale="log", xlabel="inference steps", title=title)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7)
    figure.savefig(RESULTS / "claims_steps.png", dpi=120)


def main(dataset: str, seconds: float) -> None:
    training, unseen = load(dataset)
    fixed, _, f, m = everything(unseen)
    still = torch.zeros(len(fixed), 2, *fixed.shape[2:])
    result: dict[str, Any] = {"seconds": seconds, "pairs": len(fixed), "before": dice(still, f, m), "ways": {}}
    print(f"{len(fixed)} unseen pairs of slices, Dice before {result['before']:.4f}", flush=True)
    print(
        f"{'':36} trained  Dice at 12    best (at)      at 200   residual at 200   Anderson   Picard: steps, converged"
    )
    for name, settings in {"untrained": {}, **WAYS}.items():
        net = network(solver=SOLVER, **settings)
        trained = train(net, training, seconds) if name != "untrained" else {"steps": 0}
        walked = walk(net, unseen)
        solved = {
            "anderson": solve(net, unseen, Anderson(memory=4, tol=1e-3, max_steps=100, norm="rms", patience=None)),
            "picard": solve(net, unseen, Picard(tol=1e-3, max_steps=100, norm="rms", patience=None)),
        }
        result["ways"][name] = {"trained": trained, "walk": walked, **solved}
        best = max(range(len(LOOKS)), key=lambda i: walked["dice"][i])
        cells = " ".join(f"{solved[s]['steps']:6.1f} {solved[s]['converged']:5.2f}" for s in solved)
        print(
            f"{name:36} {trained['steps']:7} {walked['dice'][LOOKS.index(12)]:11.4f} {walked['dice'][best]:7.4f} "
            f"({LOOKS[best]:3}) {walked['dice'][-1]:11.4f} {walked['residual'][-1]:17.1e}   {cells}",
            flush=True,
        )
        write("claims_steps", result)
    draw(result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--seconds", type=float, default=60, help="of processor time that each way trains for")
    arguments = parser.parse_args()
    main(arguments.dataset, arguments.seconds)
