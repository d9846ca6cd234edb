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


def one(results: list[Result], backend: str, device: str = "") -> Result | None:
    """The result of a backend whose device has this in its name, or none; two would leave it open which one counts."""
    found = [r for r in results if r["backend"] == backend and device in r["device"]]
    if len(found) > 1:
        raise ValueError(f"one result of {device or backend} may be kept, got {[r['device'] for r in found]}")
    return found[0] if found else None


def milliseconds(row: Result) -> str:
    return f"{row['seconds'] * 1e3:.3g} ms"


def cells(row: Result | None) -> str:
    """Time, ratio and share of one device."""
    if row is None:
        return f"{ABSENT} | - | -"
    return f"{milliseconds(row)} | {row['ratio']:.1f}x | {row['share']:.0%}"


def operator_table(results: list[Result]) -> str:
    """The table, in Markdown, with a sentence on what was measured where."""
    cpu, gpu = one(results, "cpu"), one(results, "cuda", "H100")
    on_cpu, on_gpu = beside_torch(cpu), beside_torch(gpu)
    if not on_cpu and not on_gpu:
        return "Not measured: `make bench` measures every operator and fills in this table."
    where = ABSENT if cpu is None else f"{cpu['device']}, {cpu['threads']} threads, torch {cpu['torch']}"
    there = ABSENT if gpu is None else f"{gpu['device']}, torch {gpu['torch']}"
    lines = [
        f"CPU: {where}. H100: {there}. A ratio is how many times longer plain torch takes, side by side; a share is",
        "the bytes that have to move over our time, relative to a large copy in the same run.",
        "",
        "| operator | size | CPU | ratio | share | H100 | ratio | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in {**on_cpu, **on_gpu}:
        lines.append(f"| {key[0]} | {key[1]} | {cells(on_cpu.get(key))} | {cells(on_gpu.get(key))} |")
    return "\n".join(lines)


def with_table(text: str, table: str) -> str:
    """A text with the table between its comments."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(), operator_table(read_results(RESULTS))))
