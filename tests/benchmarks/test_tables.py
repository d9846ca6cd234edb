"""README's table of operators says what the committed measurements say."""

import json

import pytest

from benchmarks import ops, tables


def result(backend, device, rows, **changes):
    return {
        "kind": "operators", "backend": backend, "device": device, "torch": "2.13.0", "threads": 2, "quick": False,
        "rows": rows, **changes,
    }  # fmt: skip


def row(operator, baseline="torch", **changes):
    return {
        "operator": operator, "shape": [160, 192, 224], "dtype": "float32", "seconds": 0.02049, "baseline": baseline,
        "ratio": 12.34, "share": 0.456, **changes,
    }  # fmt: skip


def test_readme_has_the_table_of_the_committed_results():
    table = tables.operator_table(tables.read_results(tables.RESULTS))
    text = tables.README.read_text()
    assert text == tables.with_table(text, table), "run python benchmarks/tables.py"


def test_a_table_has_a_column_for_each_device_and_names_what_was_not_measured():
    wide = result("cpu", "AMD EPYC, avx512", [row("warp C=1"), row("warp C=1", "monai"), row("lncc window=9")])
    narrow = result("cpu", "AMD EPYC, avx2", [row("warp C=1", seconds=0.04)])
    gpu = result("cuda", "NVIDIA H100 80GB HBM3", [row("warp C=1", seconds=46.04e-6), row("warp C=32")])
    lines = tables.operator_table([gpu, wide, narrow]).splitlines()
    threads, size = "2 threads, torch 2.13.0", "160 x 192 x 224"
    assert lines[3:] == [
        f"| operator | size | AMD EPYC, avx2, {threads} | AMD EPYC, avx512, {threads} | "
        "NVIDIA H100 80GB HBM3, torch 2.13.0 |",
        "|---|---|---|---|---|",
        f"| warp C=1 | {size} | 40 ms, 12.3x, 46% | 20.5 ms, 12.3x, 46% | 0.046 ms, 12.3x, 46% |",
        f"| lncc window=9 | {size} | not measured | 20.5 ms, 12.3x, 46% | not measured |",
        f"| warp C=32 | {size} | not measured | not measured | 20.5 ms, 12.3x, 46% |",
    ]
    assert tables.operator_table([narrow]).splitlines()[-1].endswith("| 40 ms, 12.3x, 46% | not measured |")
    assert tables.operator_table([]).startswith("Not measured")
    with pytest.raises(ValueError, match="one result of a device may be kept"):
        tables.operator_table([gpu, gpu])


def test_only_whole_runs_count(tmp_path):
    for name, changes in {"whole": {}, "quick": {"quick": True}, "sweep": {"kind": "sweep"}}.items():
        (tmp_path / f"{name}.json").write_text(ops.to_json(result("cpu", name, [row("warp C=1")], **changes)))
    (tmp_path / "other.json").write_text(json.dumps({"kind": "something else"}))
    (tmp_path / "list.json").write_text("[]")
    assert [found["device"] for found in tables.read_results(tmp_path)] == ["whole"]


def test_json_is_small_and_whole():
    rows = [row("warp C=1", seconds=0.123456789), row("warp C=4")]
    text = ops.to_json(result("cpu", "AMD EPYC", rows))
    assert sum('"operator"' in line for line in text.splitlines()) == 2
    assert json.loads(text) == result("cpu", "AMD EPYC", [{**rows[0], "seconds": 0.1235}, rows[1]])
    assert json.loads(ops.to_json(result("cpu", "AMD EPYC", [])))["rows"] == []
