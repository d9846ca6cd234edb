"""`deqreg train` and the recipes in examples/train."""

import json
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

from deqreg import io
from deqreg.cli import main
from deqreg.cli.train import TrainingLines
from deqreg.nets import DEQReg
from deqreg.training import load_checkpoint, read_config
from tests.training.lung import write_lungs
from tests.training.standin import CONFIG, write_dataset

pytest.importorskip("yaml")
RECIPES = Path(__file__).parents[2] / "examples" / "train"
SMALL = "{dims: 2, channels: 2, widths: [4, 4], hidden: 2}"


@pytest.fixture
def config(tmp_path, threads):
    """A configuration for two dimensions, and data for it, too small for more than one thread."""
    torch.set_num_threads(1)
    (tmp_path / "data").mkdir()
    path = tmp_path / "train.yaml"
    text = CONFIG.format(output=tmp_path / "out", data=write_dataset(tmp_path / "data"))
    path.write_text(f"{text}model: {SMALL}\n")
    return path


def test_it_trains_and_goes_on(config, capsys):
    words = ["train", str(config), "--device", "cpu", "--set", "steps=2", "--set", "validate_every=1"]
    assert main(words) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [[k, f"{s}/2"] for s in (1, 2) for k in ("train", "validation")]
    out = config.parent / "out"
    assert {"checkpoint.pt", "best.pt", "log.jsonl"} <= {entry.name for entry in out.iterdir()}
    best = load_checkpoint(out / "best.pt")
    net = DEQReg(**best["net"])
    net.load_state_dict(best["weights"])
    assert main([*words, "--resume"]) == 0  # there is nothing left to do


def test_it_starts_from_weights_and_leaves_what_is_frozen(config, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(5)
    encoder = DEQReg(dims=2, channels=2, widths=(4, 4), hidden=2).encoder.state_dict(prefix="encoder.")
    safetensors.save_file(encoder, tmp_path / "encoder.safetensors")
    changes = ["steps=2", f"initial={tmp_path / 'encoder.safetensors'}", "freeze=[encoder]"]
    words = [word for change in changes for word in ("--set", change)]
    assert main(["train", str(config), "--device", "cpu", *words]) == 0
    trained = load_checkpoint(tmp_path / "out" / "checkpoint.pt")
    for weights in (trained["model"], trained["average"]):
        assert all(torch.equal(weights[name], value) for name, value in encoder.items())
    torch.manual_seed(0)  # what the rest of it was drawn by
    drawn = DEQReg(dims=2, channels=2, widths=(4, 4), hidden=2).state_dict()
    moved = [name for name, value in trained["model"].items() if not torch.equal(value, drawn[name])]
    assert any(name.startswith("update.") for name in moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.dataset=nowhere"], "dataset nowhere: no such file"),
        (["model.chanels=3"], "model.chanels is not known: did you mean channels?"),
        (["optimiser.rat=3"], "optimiser.rat is not known: did you mean rate?"),
        (["steps=0"], "steps must be at least 1"),
        (["initial=nowhere.pt"], "nowhere.pt: no such file"),
        (["freeze=[head]"], "freeze must name parts of the network, such as encoder, got 'head'"),
        (["data.pairs=listed"], "lists no training_paired_images"),
    ],
)
def test_bad_input_is_one_line(config, one_line, changes, message):
    assert message in one_line("train", config, *[word for change in changes for word in ("--set", change)])
    assert not (config.parent / "out").exists()


def test_resuming_nothing_is_bad_input(config, one_line):
    assert "holds no checkpoint.pt" in one_line("train", config, "--resume")


def test_an_earlier_training_is_not_overwritten(config, one_line):
    out = config.parent / "out"
    out.mkdir()
    (out / "checkpoint.pt").write_bytes(b"precious")
    assert "give --resume" in one_line("train", config)
    assert "damaged, or no checkpoint" in one_line("train", config, "--resume")
    assert (out / "checkpoint.pt").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["brain", "nlst"])
def test_recipes_are_sound_and_want_data(name, one_line):
    assert read_config(RECIPES / f"{name}.yaml", ["data.dataset=data"]).data.dataset == "data"
    assert "data.dataset must be given" in one_line("train", RECIPES / f"{name}.yaml")


@pytest.mark.slow
def test_the_lung_recipe_runs_on_the_layout_of_nlst(tmp_path):
    """Every loss of the recipe takes part; that weights learn something is no matter of four steps."""
    (tmp_path / "data").mkdir()
    write_lungs(tmp_path / "data")
    changes = [f"data.dataset={tmp_path / 'data'}", f"output={tmp_path / 'out'}", "data.spacing=null", "steps=4",
               "log_every=1", "solver.max_steps=20", "augmentation.synthetic=0.5",
               "model={channels: 4, widths: [8, 8], hidden: 4}"]  # fmt: skip
    words = [word for change in changes for word in ("--set", change)]
    assert main(["train", str(RECIPES / "nlst.yaml"), "--device", "cpu", *words]) == 0
    *steps, validation = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    named = {name for record in steps for name in record}
    assert {"similarity", "smoothness", "folding", "landmarks", "known", "jacobian"} <= named
    assert all(record["loss"] > 0 and record["gradient"] > 0 for record in steps)
    # as the keypoints on file have it: voxels of one grid, times its edges
    points = [np.loadtxt(tmp_path / "data" / "keypointsTr" / f"NLST_0003_000{i}.csv", delimiter=",") for i in (0, 1)]
    edges = io.read_image(tmp_path / "data" / "imagesTr" / "NLST_0003_0000.nii.gz").spacing
    apart = np.linalg.norm((points[0] - points[1]) * edges, axis=1).mean()
    assert validation["tre_before"] == pytest.approx(apart, abs=0.01)  # the loss is true to a thousandth of a voxel
    assert np.isfinite(validation["tre"])


class Terminal(StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar():
    pytest.importorskip("tqdm")
    stream = Terminal()
    with TrainingLines(stream) as show:
        show({"kind": "train", "step": 10, "of": 20, "loss": 0.5, "residual": 1e-3})
        show({"kind": "validation", "step": 10, "of": 20, "dice": 0.61, "dice_before": 0.41})
        show({"kind": "train", "step": 20, "of": 20, "loss": 0.25})
    shown = stream.getvalue()
    assert "20/20" in shown
    assert "loss 0.2500" in shown
    assert "dice 0.6100  (0.4100 before)" in shown


def test_without_tqdm_a_terminal_has_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    stream = Terminal()
    with TrainingLines(stream) as show:
        show({"kind": "train", "step": 10, "of": 20, "loss": 0.5})
    assert stream.getvalue() == "train      10/20  loss 0.5000\n"
