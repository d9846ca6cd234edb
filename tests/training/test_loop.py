"""The loop: the same weights after a kill as without, the same gradient in two processes as in one, a clean end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deqreg.equilibrium import AdjointWarning
from deqreg.training import load_checkpoint, train
from deqreg.training.checkpoint import load_weights
from deqreg.training.config import Optimiser
from deqreg.training.loop import check_output, learning_rate
from deqreg.training.processes import Processes
from tests.training.standin import StandIn, make_trainer, write_config, write_dataset

pytest.importorskip("yaml")
HERE = Processes(0, 1, torch.device("cpu"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("blobs"))


def command(*words, launcher=()):
    return [sys.executable, *launcher, "-m", "tests.training.standin", *map(str, words)]


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}


def log(folder):
    """The log's records without what a clock says."""
    records = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def assert_same(a, b, where=""):
    """Nested checkpoints are equal bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def final(folder):
    content = load_checkpoint(folder / "out" / "checkpoint.pt")
    del content["config"]["output"]
    return content


def test_a_signal_ends_it_after_the_step_and_it_resumes_to_the_same_weights(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert make_trainer(write_config(whole, data), HERE).run() == 0

    trainer = make_trainer(write_config(parts, data), HERE)
    trainer.listeners.append(
        lambda r: os.kill(os.getpid(), signal.SIGTERM) if (r["kind"], r["step"]) == ("train", 6) else None
    )
    before = signal.getsignal(signal.SIGTERM)
    assert trainer.run() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert load_checkpoint(parts / "out" / "checkpoint.pt")["step"] == 6

    trainer = make_trainer(write_config(parts, data), HERE)
    trainer.resume()
    assert trainer.run() == 0
    assert_same(final(parts), final(whole))
    assert log(parts) == log(whole)
    best = load_checkpoint(whole / "out" / "best.pt")
    assert_same(best["weights"], load_checkpoint(parts / "out" / "best.pt")["weights"])
    assert best["net"] == {"channels": 4}


def interrupt():
    """Send the signal, once: the handler is then that of before, which ends the process."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)


class Asking(Processes):
    """A process that gets a signal while it asks the others whether to stop."""

    def largest(self, value):
        interrupt()
        return value


class Writing(Processes):
    """A process that gets a signal while it writes a checkpoint."""

    def gather(self, value):
        if isinstance(value, dict):
            interrupt()
        return [value]


@pytest.mark.parametrize(("kind", "last"), [(Asking, 2), (Writing, 5)])
def test_a_signal_during_an_exchange_waits_for_the_next(data, tmp_path, kind, last):
    """Else it is lost, or the process that got it leaves alone, and the others wait for it."""
    trainer = make_trainer(write_config(tmp_path, data), kind(0, 1, HERE.device))
    assert trainer.run() == signal.SIGTERM
    assert trainer.step == last
    assert load_checkpoint(tmp_path / "out" / "checkpoint.pt")["step"] == last


@pytest.mark.slow  # three processes that import torch
def test_killed_and_resumed_it_ends_with_the_same_weights(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        write_config(folder, data)
    run = {"cwd": ROOT, "env": environment()}
    subprocess.run(command(whole / "train.yaml", "new"), **run, check=True, timeout=300)

    with subprocess.Popen(command(parts / "train.yaml", "new"), **run, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.split() == ["train", "7"]:  # past the checkpoint of step 4: three steps are lost
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert load_checkpoint(parts / "out" / "checkpoint.pt")["step"] < 12
    subprocess.run(command(parts / "train.yaml", "resume"), **run, check=True, timeout=300)
    assert_same(final(parts), final(whole))
    assert log(parts) == log(whole)


@pytest.mark.slow  # torchrun and its two processes import torch
def test_two_processes_give_the_gradient_of_one_with_twice_the_batch(data, tmp_path):
    changes = ["correction.count=0", "jacobian.weight=0", "solver.tol=1e-6", "solver.max_steps=60"]
    run = {"cwd": ROOT, "env": environment(), "check": True, "timeout": 300}
    config = write_config(tmp_path, data)
    Path(config.output).mkdir()
    path = tmp_path / "train.yaml"
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    subprocess.run(command(path, "new", "gradient", *changes, launcher=two), **run)
    ranks = [torch.load(Path(config.output) / f"gradient{rank}.pt") for rank in (0, 1)]
    subprocess.run(command(path, "new", "gradient", "batch=2", *changes), **run)
    one = torch.load(Path(config.output) / "gradient0.pt")
    assert_same(*ranks)
    for name, expected in one.items():
        assert expected.abs().max() > 0
        # equilibria known to 1e-6, and sums in another order in float32
        torch.testing.assert_close(ranks[0][name], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_accumulation_gives_the_gradient_of_the_larger_batch(data, tmp_path):
    changes = {"correction__count": 0, "jacobian__weight": 0, "solver__tol": 1e-6, "solver__max_steps": 60}
    gradients = []
    for more in ({"batch": 4}, {"optimiser__accumulate": 2, "batch": 2}):
        trainer = make_trainer(write_config(tmp_path, data, **changes, **more), HERE)
        trainer.gradients()
        gradients.append({name: value.grad for name, value in trainer.net.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_loss_that_some_batches_lack_is_the_mean_of_those_that_have_it(data, tmp_path):
    config = write_config(tmp_path, data, optimiser__accumulate=4)
    trainer, seen = make_trainer(config, HERE), []
    trainer.objective.register_forward_hook(lambda module, given, out: seen.append(out[0].get("known")))
    found, _ = trainer.gradients()
    there = [value.detach() for value in seen if value is not None]
    assert 0 < len(there) < len(seen)
    torch.testing.assert_close(found["known"], torch.stack(there).mean())


def test_training_makes_the_loss_smaller(data, tmp_path):
    """One pair, no augmentation: the network can learn it by heart."""
    (tmp_path / "paired").mkdir()
    config = write_config(
        tmp_path, write_dataset(tmp_path / "paired", paired=True), steps=40, augmentation="{}", validate_every=40
    )
    assert make_trainer(config, HERE).run() == 0
    losses = [record["loss"] for record in log(tmp_path) if record["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]


def test_how_the_adjoint_was_solved_is_in_the_log(data, tmp_path):
    few = "{kind: implicit, solver: {kind: picard, max_steps: 2, tol: 1e-9}}"
    with pytest.warns(AdjointWarning, match="approximate"):
        make_trainer(write_config(tmp_path, data, steps=2, adjoint=few), HERE).run()
    trained = [record for record in log(tmp_path) if record["kind"] == "train"]
    assert [(r["adjoint_steps"], r["adjoint_converged"]) for r in trained] == [(2, 0)] * 2
    # the residuals' denominator grows from the cotangent's length on
    assert all(1e-9 < r["adjoint_residual"] < 1 for r in trained)


def test_weights_can_be_taken_from_a_checkpoint(data, tmp_path):
    trainer = make_trainer(write_config(tmp_path, data, steps=2), HERE)
    trainer.run()
    net = make_trainer(write_config(tmp_path, data, seed=1), HERE).net
    load_weights(net, tmp_path / "out" / "checkpoint.pt")
    assert_same(net.state_dict(), trainer.average.state_dict())


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x80\x02.", b"\x80\x02\xff", b"PK\x03\x04" + bytes(99)])
def test_bytes_that_are_no_checkpoint_are_said(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match="damaged, or no checkpoint of a training"):
        load_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), r"must hold a dictionary, as a training writes it, got tensor\("),
        (3, "must hold a dictionary, as a training writes it, got 3"),
        ({"weights": {"bias": 3}}, r"tensors by name as weights or average, got \{'bias': 3\}"),
        ({"average": torch.zeros(2)}, r"tensors by name as weights or average, got tensor\("),
        ({"model": {}}, r"must hold what a training writes, .*, got \['model'\]"),
        ({"weights": {"bias": torch.zeros(2)}}, r"hold bias of \[2\], but the network has \[1\] for it"),
    ],
    ids=["tensor", "number", "number as weight", "tensor as weights", "no weights", "another shape"],
)
def test_files_that_hold_no_weights_are_said(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(torch.nn.Linear(2, 1), tmp_path / "file.pt")


def test_another_configuration_is_not_resumed(data, tmp_path):
    make_trainer(write_config(tmp_path, data, steps=1), HERE).run()
    with pytest.raises(ValueError, match="written with another steps"):
        make_trainer(write_config(tmp_path, data, steps=2), HERE).resume()
    trainer = make_trainer(write_config(tmp_path, data, steps=1), HERE)
    trainer.here = Processes(0, 2, HERE.device)
    with pytest.raises(ValueError, match="ran in 1 processes"):
        trainer.resume()
    (tmp_path / "out" / "best.pt").rename(tmp_path / "out" / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"must hold what a training goes on from, it lacks .*optimiser"):
        trainer.resume()
    with pytest.raises(ValueError, match="give --resume"):
        check_output(write_config(tmp_path, data), resume=False)


class Broken(StandIn):
    """An update that gives no number."""

    def displacement(self, z, shape):
        return super().displacement(z, shape) * float("nan")


def test_a_gradient_that_is_no_number_leaves_the_weights_and_ends_it(data, tmp_path):
    trainer = make_trainer(write_config(tmp_path, data, steps=20), HERE, Broken)
    before = [value.clone() for value in trainer.net.parameters()]
    with pytest.raises(ValueError, match="not finite"):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.net.parameters(), strict=True))


@pytest.mark.parametrize(
    ("pairs", "kept", "message"),
    [
        ("auto", "registration_val", "must list at least two training cases .*, got 0$"),
        ("all", "training_paired_images", "got 0; set data.pairs to listed"),
    ],
)
def test_nothing_to_train_on_is_said(tmp_path, pairs, kept, message):
    content = json.loads((write_dataset(tmp_path, paired=True) / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({kept: content[kept]}))
    with pytest.raises(ValueError, match=message):
        train(write_config(tmp_path, tmp_path, data__pairs=pairs), device="cpu")


def test_half_precision_needs_a_gpu(data, tmp_path):
    with pytest.raises(ValueError, match="float32 on the CPU"):
        make_trainer(write_config(tmp_path, data, precision="bfloat16"), HERE)


def test_the_rate_warms_up_and_falls_to_its_floor():
    rates = [learning_rate(step, 100, Optimiser(rate=1.0, warmup=10, floor=0.1)) for step in range(100)]
    assert max(rates) == rates[9] == 1
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.101
