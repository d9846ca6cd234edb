import json

import pytest

from deqreg.report import duration, highlights, write_json
from tests.report.conftest import report_of


def names(report):
    return [item.name for item in highlights(report)]


def test_only_what_was_measured_is_shown():
    assert names(report_of()) == ["verdict", "similarity", "folding", "sd log Jacobian", "time"]
    more = report_of(
        dice={"before": 0.4, "after": 0.6, "labels": {"1": 0.6}},
        tre_mm={"before": {"mean": 9.0}, "after": {"mean": 1.0, "median": 0.9, "p90": 2.0}},
    )
    assert names(more) == ["verdict", "similarity", "Dice", "landmark error", "folding", "sd log Jacobian", "time"]
    values = {item.name: item for item in highlights(more)}
    assert values["landmark error"].value == "9.00 → 1.00 mm"
    assert values["landmark error"].detail == "mean; median 0.90, 90th percentile 2.00"


def test_little_folding_is_not_rounded_to_none():
    values = {item.name: item.value for item in highlights(report_of(folding_percent=0.00012))}
    assert values["folding"] == "0.00012 %"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.004, "0.00 s"), (9.96, "10.0 s"), (59.94, "59.9 s"), (59.97, "1 min 0 s"), (3601, "60 min 1 s")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_json_is_sorted_and_finite(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"b": [1.5, float("inf")], "a": {"z": float("nan"), "y": (1, 2)}, "c": "é"})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"a": {"y": [1, 2], "z": None}, "b": [1.5, None], "c": "é"}
    assert text.index('"a"') < text.index('"b"') < text.index('"c"')


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
