import json
import shlex
from pathlib import Path

import pytest

from deqreg.cli import main, register

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data"


@pytest.mark.parametrize(
    ("pair", "options"),
    [
        ("lung", ["fixed-mask", "moving-mask", "fixed-landmarks", "moving-landmarks"]),
        ("brain", []),
        ("known_field", ["fixed-labels", "moving-labels"]),
    ],
)
def test_the_demo_is_the_command_it_prints(tmp_path, capsys, monkeypatch, pair, options):
    ran = []
    monkeypatch.setattr(register, "run", lambda args: ran.append(args) or 0)
    assert main(["demo", pair, "-o", str(tmp_path / "out")]) == 0
    words = shlex.split(capsys.readouterr().out)
    folder = EXAMPLES / pair
    assert words[:6] == [
        *("deqreg", "register", str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")),
        *("-o", str(tmp_path / "out")),
    ]
    assert words[6::2] == [f"--{option}" for option in options]
    assert all(Path(word).is_file() for word in words[7::2])
    # typed as it stands, it asks for the same
    assert main(words[1:]) == 0
    assert ran[0].words == ran[1].words == words
    demo, typed = (vars(args) for args in ran)
    assert {name: typed[name] for name in demo if name != "run"} == {name: demo[name] for name in demo if name != "run"}


def test_data_that_is_not_there(tmp_path, one_line):
    assert f"no example pairs in {tmp_path}" in one_line("demo", "--data", tmp_path, "-o", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_lung_demo_reaches_its_accuracy(tmp_path):
    assert main(["demo", "lung", "-o", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["tre_mm"]["before"]["mean"] == pytest.approx(35.3, abs=0.05)
    assert report["tre_mm"]["after"]["mean"] < 2.0
    assert report["tre_mm"]["after"]["median"] < 1.5
    assert report["folding_percent"] == 0.0
