"""The figures of a registration: the few that matter most, and all of them as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deqreg.io import Volume, replacing


@dataclass(frozen=True)
class Highlight:
    """One figure worth a headline.

    Attributes:
        name: what it is.
        value: the figure with its unit; "before → after" where it has both.
        detail: what stands beside it, or nothing.
    """

    name: str
    value: str
    detail: str = ""


def highlights(report: Mapping[str, Any]) -> tuple[Highlight, ...]:
    """Pick the figures that a person looks at first.

    Args:
        report: `Registration.report()`.

    Returns:
        The verdict, similarity, Dice and landmark error where they were measured, folding, smoothness and time.

    Example:
        >>> report = {"similarity": {"before": 0.25, "after": 0.5}, "seconds": {"total": 12.0}}
        >>> report |= {"folding_percent": 0.0, "sd_log_jacobian": 0.1, "verdict": "plausible"}
        >>> [item.value for item in highlights(report)]
        ['plausible', '0.250 → 0.500', '0 %', '0.100', '12.0 s']
    """
    found = [Highlight("verdict", report["verdict"], "told from the images and the field")]
    found += [Highlight("similarity", _change(report["similarity"], "{:.3f}"), "higher is better")]
    dice, tre = report.get("dice"), report.get("tre_mm")
    if dice is not None:
        found.append(Highlight("Dice", _change(dice, "{:.3f}"), f"mean of {len(dice['labels'])} labels"))
    if tre is not None:
        after = tre["after"]
        means = {when: values["mean"] for when, values in tre.items()}
        detail = f"mean; median {after['median']:.2f}, 90th percentile {after['p90']:.2f}"
        found.append(Highlight("landmark error", _change(means, "{:.2f}") + " mm", detail))
    found += [
        Highlight("folding", f"{report['folding_percent']:.3g} %", "of the voxels"),
        Highlight("sd log Jacobian", f"{report['sd_log_jacobian']:.3f}", "unevenness of the stretch"),
        Highlight("time", duration(report["seconds"]["total"]), "without writing"),
    ]
    return tuple(found)


def title_of(fixed: Volume, moving: Volume) -> str:
    """Name a pair by its files.

    Args:
        fixed: the image that stays.
        moving: the image that is warped.

    Returns:
        Such as "moving.nii.gz onto fixed.nii.gz".

    Example:
        >>> import numpy, torch
        >>> fixed = Volume(torch.rand(4, 4), numpy.eye(4), name="fixed image /data/fixed.nii.gz")
        >>> moving = Volume(torch.rand(4, 4), numpy.eye(4), name="moving image /data/moving.nii.gz")
        >>> title_of(fixed, moving)
        'moving.nii.gz onto fixed.nii.gz'
    """
    # a volume's name is its role and its path
    names = [
        Path(image.name.removeprefix(f"{role} image ")).name for image, role in ((moving, "moving"), (fixed, "fixed"))
    ]
    return " onto ".join(names)


def duration(seconds: float) -> str:
    """Write a time span as people read it.

    Args:
        seconds: how long.

    Returns:
        "0.42 s", "12.3 s" or "3 min 5 s".

    Example:
        >>> duration(0.42), duration(12.34), duration(185)
        ('0.42 s', '12.3 s', '3 min 5 s')
    """
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def write_json(path: str | os.PathLike[str], report: Mapping[str, Any]) -> None:
    """Write a report as JSON with sorted keys, whole or not at all.

    Numbers that are not finite become null: JSON has none, and a reader in another language would stop at them.

    Args:
        path: the file; its folder must exist.
        report: dictionaries, lists, strings, numbers.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "report.json"
        >>> write_json(path, {"b": float("nan"), "a": [1, 2]})
        >>> json.loads(path.read_text())
        {'a': [1, 2], 'b': None}
    """
    text = json.dumps(_finite(report), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _change(values: Mapping[str, float], form: str) -> str:
    return f"{form.format(values['before'])} → {form.format(values['after'])}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
