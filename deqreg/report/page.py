"""report.html: all figures of a registration in one file that needs nothing else."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from deqreg.io import replacing
from deqreg.report.summary import duration, highlights

_STYLE = """
:root { color-scheme: light dark; --ink: #16191f; --dim: #667080; --paper: #fff; --line: #dfe3e9; --accent: #b8620a }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9ecf1; --dim: #929cab; --paper: #0b0d11; --line: #262c36; --accent: #ffb454 } }
body { margin: 0 auto; max-width: 1280px; padding: 2rem 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 .5rem }
.sentence, small, th { color: var(--dim) } .sentence { margin: .2rem 0 1.4rem }
.figures { display: flex; flex-wrap: wrap; gap: 1.2rem 2.6rem; margin-bottom: 1.5rem }
.figures b { display: block; font-size: 1.35rem; font-weight: 600; line-height: 1.3 }
.warning { border-left: 3px solid var(--accent); padding-left: .8rem; margin: .5rem 0 }
img { width: 100%; border-radius: 6px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { text-align: left; padding: .28rem 1.4rem .28rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 500 } svg { display: block } polyline { fill: none; stroke: var(--accent); stroke-width: 1.5 }
.columns { display: flex; flex-wrap: wrap; gap: 0 4rem }
"""
_SPARK_WIDTH, _SPARK_HEIGHT = 160, 30


def write_page(
    path: str | os.PathLike[str], report: Mapping[str, Any], title: str, picture: str | os.PathLike[str] | None = None
) -> None:
    """Write the report as one HTML file, its picture inside, whole or not at all.

    Args:
        path: the file; its folder must exist.
        report: `Registration.report()`.
        title: what was registered, such as "moving.nii.gz onto fixed.nii.gz".
        picture: the PNG that `draw` wrote; left out without one.

    Raises:
        OSError: the file cannot be written, or the picture not read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "report.html"
        >>> report = {"sentence": "Converged.", "similarity": {"before": 0.25, "after": 0.5}, "seconds": {"total": 3.0}}
        >>> report |= {"verdict": "plausible", "folding_percent": 0.0, "sd_log_jacobian": 0.1, "levels": []}
        >>> write_page(path, report | {"warnings": [], "settings": {}, "versions": {}}, "a onto b")
        >>> "<h1>a onto b</h1>" in path.read_text(encoding="utf-8")
        True
    """
    cards = "".join(
        f"<div>{escape(item.name)}<b>{escape(item.value)}</b><small>{escape(item.detail)}</small></div>"
        for item in highlights(report)
    )
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in report["warnings"])
    tables = "".join(
        f"<div><h2>{escape(heading)}</h2>{_table(report[key])}</div>"
        for key, heading in (("seconds", "Seconds"), ("settings", "Settings"), ("versions", "Versions"))
    )
    content = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n"
        f'<h1>{escape(title)}</h1><p class="sentence">{escape(report["sentence"])}</p>\n'
        f'<div class="figures">{cards}</div>\n{warnings}{_image(picture, title)}'
        f'{_levels(report["levels"])}<div class="columns">{tables}</div></html>\n'
    )
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def sparkline(values: Sequence[float]) -> str:
    """Draw a falling residual as a small line on a logarithmic scale.

    Args:
        values: positive numbers; others leave a gap that the line crosses.

    Returns:
        An SVG element; nothing for fewer than two numbers.

    Example:
        >>> sparkline([1.0]), sparkline([1.0, 0.1]).startswith("<svg")
        ('', True)
    """
    points = [(i, math.log10(v)) for i, v in enumerate(values) if v > 0 and math.isfinite(v)]
    if len(points) < 2:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    across, tall = _SPARK_WIDTH / max(1, len(values) - 1), (_SPARK_HEIGHT - 4) / max(high - low, 1e-9)
    line = " ".join(f"{x * across:.1f},{2 + (high - y) * tall:.1f}" for x, y in points)
    label = f"{10 ** points[0][1]:.2g} to {10 ** points[-1][1]:.2g}"
    box = f'width="{_SPARK_WIDTH}" height="{_SPARK_HEIGHT}" viewBox="0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}"'
    return f'<svg {box} role="img" aria-label="{label}"><title>{label}</title><polyline points="{line}"/></svg>'


def _image(picture: str | os.PathLike[str] | None, title: str) -> str:
    if picture is None:
        return ""
    data = base64.b64encode(Path(picture).read_bytes()).decode("ascii")
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">\n'


def _levels(levels: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate the levels, the residual of each drawn."""
    if not levels:
        return ""
    names = (
        "level",
        "voxels",
        "spacing, mm",
        "steps",
        "residual",
        "",
        "similarity",
        "Jacobian",
        "time",
        "how it ended",
    )
    rows = []
    for number, level in enumerate(levels, start=1):
        residuals = level["residuals"]
        cells = (
            str(number),
            " x ".join(str(size) for size in level["shape"]),
            " x ".join(f"{size:.2f}" for size in level["spacing"]),
            str(level["steps"]),
            f"{residuals[-1]:.1e}" if residuals else "",
            sparkline(residuals),
            f"{level['similarity_before']:.3f} → {level['similarity_after']:.3f}",
            "{:.2f} to {:.2f}".format(*level["jacobian_range"]),
            duration(level["seconds"]),
            escape(level["sentence"]),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<h2>Levels</h2><div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>\n'


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in _flat(values))
    return f"<table>{rows}</table>"


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Give a row a value, those of nested dictionaries under both names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key} ")
        else:
            yield f"{before}{key}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        separator = "; " if value and isinstance(value[0], Mapping) else ", "
        return separator.join(_text(entry) for entry in value)
    return str(value)
