"""`deqreg info`: what runs here, for a look and for bug reports."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser("info", help="print versions, instruction sets and devices")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what is known."""
    facts = collect()
    if args.json:
        print(json.dumps(facts, indent=2, sort_keys=True))
        return 0
    for name, value in facts.items():
        text = ", ".join(value) or "none" if isinstance(value, list) else str(value)
        print(f"{name.replace('_', ' '):<28} {text}")
    return 0


def collect() -> dict[str, Any]:
    """Gather versions, how the kernels were built, and what they can run on.

    Returns:
        Names to strings, numbers or lists of strings.

    Example:
        >>> facts = collect()
        >>> facts["instruction_set"] in facts["instruction_sets_supported"]
        True
    """
    import torch

    from deqreg import _C
    from deqreg.registration import versions

    found = versions()
    return {
        **{name: found[name] for name in ("deqreg", "torch", "numpy", "nibabel", "python")},
        "platform": platform.platform(),
        "compiler": _C.compiler,
        "instruction_sets_compiled": _C.instruction_sets_compiled(),
        "instruction_sets_supported": _C.instruction_sets_supported(),
        "instruction_set": _C.instruction_set(),
        "threads": torch.get_num_threads(),
        "cuda_architectures": _C.cuda_architectures.split(";") if _C.cuda_architectures else [],
        "torch_cuda": torch.version.cuda or "none",
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
