"""Memory of a training step against the steps of the solver: equilibrium against backpropagation through time.

    python benchmarks/claims/memory.py

Counts the bytes of the tensors that autograd keeps for the backward pass beyond the encoder's, each storage once, on
the 2-D network of the other experiments, with the solver made to take every step. Writes
benchmarks/results/claims_memory.json and .png.
"""

from typing import Any

import torch
from slices import RESULTS, network, write
from torch import Tensor

from deqreg.equilibrium import Anderson, Implicit, Phantom, Unrolled, fixed_point

STEPS = (6, 12, 24, 48, 96)
SHAPE = (88, 104)


def kept(adjoint: Implicit | Phantom | Unrolled, steps: int) -> int:
    """Bytes kept for the backward pass of the equilibrium."""
    net = network()
    images = torch.rand(2, 1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    update, state = net.prepare(*images)
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is given out twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        solver = Anderson(memory=4, tol=0.0, max_steps=steps, patience=None)
        fixed_point(update, state, solver=solver, adjoint=adjoint)
    return sum(storages.values())


def main() -> None:
    ways: dict[str, Any] = {
        "implicit": lambda steps: Implicit(),
        "phantom, 3 steps": lambda steps: Phantom(steps=3),
        "unrolled": lambda steps: Unrolled(steps=steps),
    }
    result: dict[str, Any] = {"steps": list(STEPS), "shape": list(SHAPE), "mebibytes": {}}
    print("steps            " + "".join(f"{steps:>9}" for steps in STEPS) + "   growth 6 to 96")
    for name, make in ways.items():
        found = [kept(make(steps), steps) / 2**20 for steps in STEPS]
        result["mebibytes"][name] = found
        cells = "".join(f"{value:9.1f}" for value in found)
        print(f"{name:17}{cells}   {100 * (found[-1] / found[0] - 1):.1f} %", flush=True)
    write("claims_memory", result)
    draw(result)


def draw(result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.6), layout="constrained")
    for name, values in result["mebibytes"].items():
        axis.plot(result["steps"], values, "o-", label=name)
    axis.set(xlabel="steps of the solver", ylabel="MiB kept for the backward pass")
    axis.legend()
    figure.savefig(RESULTS / "claims_memory.png", dpi=120)


if __name__ == "__main__":
    main()
