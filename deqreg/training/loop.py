"""The loop: one process or several, to the end, to a signal, or on from a checkpoint."""

from __future__ import annotations

import copy
import inspect
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deqreg.configuration import check_known, plain
from deqreg.data import Case, Dataset, Pairs, load_cases, read_dataset
from deqreg.data.pairs import all_pairs
from deqreg.equilibrium import Solution, Trace
from deqreg.training.checkpoint import BEST, CHECKPOINT, load_checkpoint, load_weights, save_checkpoint
from deqreg.training.config import CHOICES, Config, Optimiser
from deqreg.training.log import LOG, JsonLines, Record, TensorBoard
from deqreg.training.objective import Objective
from deqreg.training.processes import Processes, processes
from deqreg.training.validation import better, validate

# A loss that is not finite can come of one bad pair; so many in a row come of weights that are lost.
_PATIENCE = 10
# What a checkpoint must hold to be resumed from.
_RESUMED = ("config", "processes", "step", "model", "average", "optimiser", "scaler", "skipped", "best", "numbers")
# What may differ when a training is resumed: where it is written, and how often it says something.
_FREE = ("output", "log_every", "validate_every", "checkpoint_every")


def train(
    config: Config,
    *,
    resume: bool = False,
    device: str = "auto",
    listeners: Sequence[Callable[[Record], None]] = (),
) -> int:
    """Train a network as a configuration says, or go on where it stopped.

    Started by `torchrun`, each process takes its share. `config.output` receives `checkpoint.pt`, `best.pt` and
    `log.jsonl`, and TensorBoard's files where it is installed. SIGINT and SIGTERM end it after the step that is
    running, with a checkpoint.

    Args:
        config: what to do.
        resume: go on from the checkpoint in `config.output`.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        listeners: called with every record of the log, in the first process.

    Returns:
        0 when all steps are done, else the number of the signal that ended it.

    Raises:
        ValueError: when the configuration and the data do not fit, or there is a checkpoint and it was not to resume.

    Example:
        >>> from deqreg.training.config import Data
        >>> train(Config("out", Data("nowhere")), device="cpu")
        Traceback (most recent call last):
        ValueError: dataset nowhere: no such file; give the dataset.json of a folder in the layout of Learn2Reg
    """
    with processes(device) as here:
        check_output(config, resume)
        data = read_dataset(config.data.dataset)
        pairs = training_pairs(config, data)
        net = build_net(config)
        if config.initial is not None and not resume:
            load_weights(net, config.initial)
        net.to(here.device)
        wanted = [case for pair in (*pairs, *data.validation_pairs) for case in pair]
        cases = load_cases(wanted, config.data.spacing, config.data.storage)
        training = Pairs(pairs, cases, config.seed, config.augmentation)
        validation = Pairs(data.validation_pairs, cases) if data.validation_pairs else None
        trainer = Trainer(config, net, training, validation, here, listeners)
        if resume:
            trainer.resume()
        return trainer.run()


def check_output(config: Config, resume: bool) -> None:
    """Raise where the output holds a checkpoint that is not to be resumed, or none that is.

    >>> from deqreg.training.config import Data
    >>> check_output(Config("nowhere", Data("data")), resume=False)
    """
    path = Path(config.output) / CHECKPOINT
    if resume and not path.is_file():
        raise ValueError(f"output {config.output}: holds no {CHECKPOINT} to resume from")
    if not resume and path.is_file():
        raise ValueError(
            f"output {config.output}: holds the checkpoint of a training; give --resume, or another output"
        )


def training_pairs(config: Config, data: Dataset) -> Sequence[tuple[Case, Case]]:
    """The pairs that a configuration trains on; raise where there are none.

    >>> from deqreg.training.config import Data
    >>> a, b = Case(Path("a")), Case(Path("b"))
    >>> len(training_pairs(Config("out", Data("data")), Dataset("data", (a, b), (), ())))
    2
    """
    which, path = config.data.pairs, config.data.dataset
    if which == "listed" and not data.training_pairs:
        raise ValueError(f"data.pairs is listed, but {path} lists no training_paired_images")
    if which != "all" and data.training_pairs:
        return data.training_pairs
    if len(data.training) < 2:
        hint = "; set data.pairs to listed to train on its training_paired_images" if data.training_pairs else ""
        raise ValueError(
            f"dataset {path}: must list at least two training cases that are not for validation, "
            f"got {len(data.training)}{hint}"
        )
    return all_pairs(data.training)


def build_net(config: Config) -> nn.Module:
    """The network of a configuration, its weights drawn by the seed, its frozen parts frozen."""
    from deqreg.nets import DEQReg

    known = [name for name in inspect.signature(DEQReg).parameters if name not in ("solver", "adjoint")]
    for key in config.model:
        check_known(key, known, "model")
    torch.manual_seed(config.seed)
    net = DEQReg(**config.model, solver=config.solver, adjoint=config.adjoint)
    for name in config.freeze:
        parts = [part for part, _ in net.named_modules() if part]
        if name not in parts:
            raise ValueError(f"freeze must name parts of the network, such as {parts[0]}, got {name!r}")
        net.get_submodule(name).requires_grad_(False)
    return net


def learning_rate(step: int, steps: int, optimiser: Optimiser) -> float:
    """The rate of a step, counted from 0: a linear warm-up, then half a cosine to the floor.

    >>> [round(learning_rate(step, 10, Optimiser(rate=1.0, warmup=2, floor=0.0)), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    if step < optimiser.warmup:
        return optimiser.rate * (step + 1) / optimiser.warmup
    done = (step - optimiser.warmup) / max(1, steps - optimiser.warmup)
    return optimiser.rate * (optimiser.floor + (1 - optimiser.floor) * 0.5 * (1 + math.cos(math.pi * done)))


class Trainer:
    """A training in progress: a network, its data, and everything that changes.

    Step `s` takes the places `s A P B ... (s + 1) A P B - 1` of the shuffled sequence of pairs, `A` batches of `B`
    pairs in `P` processes; nothing random depends on anything but the seed and the place. A training that resumes thus
    goes on with the very pairs and numbers it would have had.

    Args:
        config: what to do.
        net: see `Objective`; on its device.
        training: pairs to train on.
        validation: pairs to validate on, if any.
        here: this process.
        listeners: called with every record of the log, in the first process.
    """

    def __init__(
        self,
        config: Config,
        net: nn.Module,
        training: Pairs,
        validation: Pairs | None,
        here: Processes,
        listeners: Sequence[Callable[[Record], None]] = (),
    ) -> None:
        if config.precision != "float32" and here.device.type != "cuda":
            raise ValueError(f"precision must be float32 on the CPU, got {config.precision}")
        self.config, self.net, self.here = config, net, here
        self.training, self.validation, self.listeners = training, validation, list(listeners)
        self.average = copy.deepcopy(net).requires_grad_(False)
        objective = Objective(net, config)
        self.objective = DistributedDataParallel(objective) if here.count > 1 else objective
        how = config.optimiser
        trained = [value for value in net.parameters() if value.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained, lr=how.rate, betas=(how.betas[0], how.betas[1]), weight_decay=how.decay
        )
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=config.precision == "float16")
        self.step, self.skipped, self.best = 0, 0, None
        self.stop, self.asked = 0, 0
        self.output = Path(config.output)

    def run(self) -> int:
        """Train to the last step, or to a signal, whose number is returned; else 0."""
        config = self.config
        if self.here.first:
            self.output.mkdir(parents=True, exist_ok=True)
            writers = [JsonLines(self.output / LOG, self.step), TensorBoard(self.output / "tensorboard", self.step)]
            self.listeners = [*writers, *self.listeners]
        averages = _Averages()
        with self._signals():
            while self.step < config.steps and not self.stop:
                started = time.perf_counter()
                found, solution = self._step()
                self.step += 1
                averages.add(found, solution, time.perf_counter() - started)
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self._tell("train", averages.take())
                if self.step % config.validate_every == 0 or self.step == config.steps:
                    self._validate()
                # a signal counts from here on, when all processes know of it: each leaves at the same step
                self.stop = self.here.largest(self.asked)
                if self.step % config.checkpoint_every == 0 or self.step == config.steps or self.stop:
                    self.checkpoint()
        return self.stop

    def gradients(self) -> tuple[dict[str, Tensor], Solution]:
        """Put the step's gradient, the mean over its pairs in all processes, into the parameters.

        Returns:
            Each loss, the mean over the batches of this process that have it; and how the last equilibrium was found.
        """
        config, here = self.config, self.here
        self.net.train()
        self.optimiser.zero_grad(set_to_none=True)
        accumulate, batch = config.optimiser.accumulate, config.batch
        parts: dict[str, list[Tensor]] = {}
        for part in range(accumulate):
            place = ((self.step * accumulate + part) * here.count + here.rank) * batch
            pairs = self.training.shuffled(range(place, place + batch), here.device)
            generator = self.training.sampler.generator(place, stream=1)
            waits = isinstance(self.objective, DistributedDataParallel) and part + 1 < accumulate
            with self.objective.no_sync() if waits else nullcontext():  # pyright: ignore[reportCallIssue]
                with self._autocast():
                    found, solution = self.objective(pairs, generator)
                self.scaler.scale(found["loss"] / accumulate).backward()
            for name, value in found.items():
                parts.setdefault(name, []).append(value.detach())
        means = {name: torch.stack(values).mean() for name, values in parts.items()}
        return means, solution  # pyright: ignore[reportPossiblyUnboundVariable]  accumulate is at least 1

    def _step(self) -> tuple[dict[str, Tensor], Solution]:
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, config.steps, config.optimiser)
        found, solution = self.gradients()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), config.optimiser.clip)
        finite = bool(norm.isfinite())
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped >= _PATIENCE:
            raise ValueError(
                f"the gradient was not finite {_PATIENCE} steps in a row, at step {self.step + 1}: lower "
                f"optimiser.rate, or raise jacobian.weight; the last checkpoint is in {self.output}"
            )
        if finite or self.scaler.is_enabled():  # a scaler leaves the step out itself, and lowers its scale
            self.scaler.step(self.optimiser)
        self.scaler.update()
        if finite:
            self._follow()
        return {**found, "gradient": norm}, solution

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average of the weights; faster in the beginning, whose weights are worth nothing."""
        decay = min(self.config.optimiser.average, (1 + self.step) / (10 + self.step))
        for average, current in zip(self.average.parameters(), self.net.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
        for average, current in zip(self.average.buffers(), self.net.buffers(), strict=True):
            average.copy_(current)

    def _autocast(self) -> Any:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.here.device.type, dtype=getattr(torch, self.config.precision))

    def _validate(self) -> None:
        if self.validation is None:
            return
        with self._autocast():
            found = validate(self.average, self.validation, self.config.loss, self.here)
        self._tell("validation", found)
        if better(found, self.best):
            self.best = found
            if self.here.first:
                content = {"net": self._net_config(), "weights": self.average.state_dict()}
                save_checkpoint(self.output / BEST, {**content, "step": self.step, "validation": found})

    def _tell(self, kind: str, values: dict[str, float]) -> None:
        if self.here.first:
            record = {"kind": kind, "step": self.step, "of": self.config.steps, **values}
            for listener in self.listeners:
                listener(record)

    def _net_config(self) -> Any:
        net: Any = self.net
        return plain(net.config(), CHOICES)

    def checkpoint(self) -> None:
        """Write everything that changes."""
        numbers = {"cpu": torch.get_rng_state()}
        if self.here.device.type == "cuda":
            numbers["cuda"] = torch.cuda.get_rng_state(self.here.device)
        numbers = self.here.gather(numbers)
        if not self.here.first:
            return
        content = {
            "config": plain(self.config, CHOICES),
            "net": self._net_config(),
            "processes": self.here.count,
            "step": self.step,
            "model": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "best": self.best,
            "numbers": numbers,
        }
        save_checkpoint(self.output / CHECKPOINT, content)

    def resume(self) -> None:
        """Take up what `checkpoint` wrote.

        Raises:
            ValueError: when it is no checkpoint, or one of another configuration or number of processes.
        """
        content = load_checkpoint(self.output / CHECKPOINT)
        self._check_same(content)
        self.net.load_state_dict(content["model"])
        self.average.load_state_dict(content["average"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.scaler.load_state_dict(content["scaler"])
        self.step, self.skipped, self.best = content["step"], content["skipped"], content["best"]
        numbers = content["numbers"][self.here.rank]
        torch.set_rng_state(numbers["cpu"])
        if "cuda" in numbers and self.here.device.type == "cuda":
            torch.cuda.set_rng_state(numbers["cuda"], self.here.device)

    def _check_same(self, content: dict[str, Any]) -> None:
        missing = [name for name in _RESUMED if name not in content]
        if missing:
            raise ValueError(
                f"output {self.output}: its {CHECKPOINT} must hold what a training goes on from, it lacks "
                f"{', '.join(missing)}; {BEST} holds the weights alone"
            )
        then, now = content["config"], plain(self.config, CHOICES)
        differing = [name for name in now if name not in _FREE and then.get(name) != now[name]]
        if differing:
            raise ValueError(
                f"output {self.output}: its checkpoint was written with another {', '.join(differing)}; resume with "
                "the same configuration, or train to another output"
            )
        if content["processes"] != self.here.count:
            raise ValueError(
                f"output {self.output}: its training ran in {content['processes']} processes and must be resumed in as "
                f"many, got {self.here.count}"
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the loop after the step; a second one ends it as it would have."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, _: object) -> None:
            self.asked = number
            for known, handler in before.items():
                signal.signal(known, handler)

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Averages:
    """Means since the last record, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}

    def add(self, found: dict[str, Tensor], solution: Solution, seconds: float) -> None:
        """Count a step in."""
        numbers = {name: value.detach() for name, value in found.items()} | _numbers(solution)
        for trace in solution.adjoint:
            numbers |= {f"adjoint_{name}": value for name, value in _numbers(trace).items()}
        for name, value in {**numbers, "seconds": seconds}.items():
            self.totals[name] = self.totals.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, and begin again."""
        found = {name: float(total) / self.counts[name] for name, total in self.totals.items()}
        self.__init__()
        return found


def _numbers(trace: Trace) -> dict[str, Tensor | float]:
    """How a solve went, in numbers that have a mean."""
    return {
        "residual": float(trace.residuals[-1].max()),
        "steps": float(trace.steps.max()),
        "converged": float(trace.converged),
    }
