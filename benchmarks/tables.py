"""Put what benchmarks/ops.py measured into README.md.

    python benchmarks/tables.py

The table of operators stands between two comments in README.md, and is made from the JSON in benchmarks/results/ alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
BEGIN, END = "<!-- operators, by benchmarks/tables.py -->", "<!-- end of operators -->"
ABSENT = "not measured"

Result = dict[str, Any]


def read_results(folder: Path) -> list[Result]:
    """Whole runs of benchmarks/ops.py; neither quick ones nor sweeps."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [r for r in found if isinstance(r, dict) and r.get("kind") == "operators" and not r["quick"]]


def beside_torch(result: Result | None) -> dict[tuple[str, str], Result]:
    """The rows of a result against plain torch, by operator and size."""
    rows = [] if result is None else result["rows"]
    return {(r["operator"], " x ".join(map(str, r["shape"]))): r for r in rows if r["baseline"] == "torch"}


def devices(results: list[Result]) -> list[Result]:
    """Those of processors, then those of GPUs; two of one device would leave it open which counts."""
    names = [r["device"] for r in results]
    if len(set(names)) < len(names):
        raise ValueError(f"one result of a device may be kept, got {names}")
    return sorted(results, key=lambda r: (r["backend"], r["device"]))


def cell(row: Result | None) -> str:
    """Time, ratio and share of one operator on one device."""
    if row is None:
        return ABSENT
    return f"{row['seconds'] * 1e3:.3g} ms, {row['ratio']:.1f}x, {row['share']:.0%}"


def title(result: Result) -> str:
    threads = f", {result['threads']} threads" if result["backend"] == "cpu" else ""
    return f"{result['device']}{threads}, torch {result['torch']}"


def operator_table(results: list[Result]) -> str:
    """The table, in Markdown, with a sentence on what was measured where; the H100 has a column in any case."""
    found = devices(results)
    columns = {title(r): beside_torch(r) for r in found}
    if not any(columns.values()):
        return "Not measured: `make bench` measures every operator and fills in this table."
    if not any("H100" in r["device"] for r in found):
        columns["H100"] = {}
    keys = {key: None for column in columns.values() for key in column}
    lines = [
        "Our time, how many times longer plain torch takes side by side, and the bytes that have to move over our",
        "time, relative to a large copy in the same run.",
        "",
        f"| operator | size | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for key in keys:
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(cell(rows.get(key)) for rows in columns.values())} |")
    return "\n".join(lines)


def with_table(text: str, table: str) -> str:
    """A text with the table between its comments."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(), operator_table(read_results(RESULTS))))
