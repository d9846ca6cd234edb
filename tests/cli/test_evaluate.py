"""`deqreg evaluate` on a small set whose displacements are known."""

import json
import sys

import pytest

from deqreg.cli import main
from tests.training.lung import write_lungs


@pytest.fixture(scope="module")
def lungs(tmp_path_factory):
    return write_lungs(tmp_path_factory.mktemp("lungs"), patients=2)


def test_it_measures_each_pair_and_the_means(lungs, tmp_path, capsys):
    words = ["evaluate", lungs, "-o", tmp_path / "new" / "result.json", "--initial", "identity", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pair", "NLST_0002_0000", "mean"]
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    (row,) = result["pairs"]
    assert result["dataset"] == "lungs"
    assert row["moving"] == "NLST_0002_0001.nii.gz"
    assert row["tre_mm"] < 0.7 * row["tre_before_mm"]
    assert result["mean"]["tre_mm"] == row["tre_mm"]
    assert "dice" not in row  # it has no labels
    assert f"{row['tre_mm']:.2f}" in lines[-1].split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "0"], "--limit must be at least 1"),
        (["--pairs", "training", "--method", "magic"], "method must be one of"),
        (["--initial", "nowhere.tfm"], "nowhere.tfm"),
    ],
)
def test_bad_input(lungs, capsys, words, message):
    assert main(["evaluate", str(lungs), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_in_the_place_of_the_file_is_found_before_computing(lungs, tmp_path, one_line):
    assert one_line("evaluate", lungs, "-o", tmp_path).endswith(f"-o {tmp_path}: is a folder; give a file in it")


def test_the_data_set_is_not_overwritten(lungs, one_line):
    target = lungs / "dataset.json"
    before = target.read_text()
    assert "is the input" in one_line("evaluate", lungs, "-o", target)
    assert target.read_text() == before


def test_the_learned_method_without_safetensors_is_one_line(lungs, monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install 'deqreg[cli]'" in one_line("evaluate", lungs, "--method", "equilibrium")
