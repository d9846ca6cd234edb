#!/usr/bin/env python3
"""Everything that takes a GPU, on a machine that may have no package registry: build, test, sanitise, benchmark.

    python .ci/gpu.py [--dry-run] [--quick] [--only STAGE ...]

Uses whatever torch, CUDA toolkit, CMake and Ninja are there, and installs nothing. A stage that fails, or that has to
be skipped, does not keep the later ones from running; the exit code is nonzero if any failed. With a GPU the outcome is
written to benchmarks/results/DEVICE-checks.json, the timings by benchmarks/ops.py beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Machine:
    """What there is to work with."""

    device: str
    architecture: str
    torch: str
    nvcc: str


@dataclass(frozen=True)
class Stage:
    """A command, what it cannot run without, and the seconds after which it counts as hung."""

    name: str
    command: list[str]
    limit: int
    gpu: bool = True
    tool: str | None = None


@dataclass
class Outcome:
    """How a stage ended."""

    stage: str
    status: str
    seconds: float


def look_around() -> Machine:
    try:
        import torch
    except ImportError:
        return Machine("no GPU", "", "not installed", "")
    nvcc = ""
    if shutil.which("nvcc"):
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
        nvcc = found[1] if (found := re.search(r"release (\S+),", text)) else "unknown"
    if not torch.cuda.is_available():
        return Machine("no GPU", "", torch.__version__, nvcc)
    major, minor = torch.cuda.get_device_capability()
    return Machine(torch.cuda.get_device_name(), f"{major}{minor}", torch.__version__, nvcc)


def marked_tests() -> list[str]:
    """Files with tests for a GPU; collecting the others could miss packages that are not there."""
    found = (path for path in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.cuda" in path.read_text())
    return [str(path.relative_to(ROOT)) for path in found]


def stages(machine: Machine, quick: bool) -> list[Stage]:
    python, sanitizer = sys.executable, "compute-sanitizer"
    native = [python, ".ci/native.py", "--build", str(BUILD), "--no-tests"]
    if machine.architecture:
        native += ["--arch", machine.architecture]
    program = str(BUILD / "tests" / "native" / "cuda_test")
    checks = [sanitizer, "--error-exitcode", "1", "--print-limit", "20"]
    benchmark = [python, "benchmarks/ops.py", "--device", "cuda", *(["--quick"] if quick else [])]
    return [
        Stage("build", [python, "setup.py", "build_ext", "--inplace"], 900, gpu=False),
        Stage("tests", [python, "-m", "pytest", "-m", "cuda", "-q", *marked_tests()], 240),
        Stage("benchmarks", benchmark, 240),
        Stage("native build", native, 900, gpu=False, tool="nvcc"),
        Stage("native tests", ["ctest", "--test-dir", str(BUILD), "--output-on-failure"], 180, gpu=False, tool="nvcc"),
        Stage("memcheck", [*checks, "--tool", "memcheck", program], 240, tool=sanitizer),
        Stage("racecheck", [*checks, "--tool", "racecheck", program], 240, tool=sanitizer),
    ]


def reason_to_skip(stage: Stage, machine: Machine, only: list[str]) -> str | None:
    if only and stage.name not in only:
        return "not asked for"
    if stage.gpu and machine.device == "no GPU":
        return "no GPU"
    if stage.tool and shutil.which(stage.tool) is None:
        return f"no {stage.tool} on the PATH"
    return None


def run(stage: Stage, environment: dict[str, str]) -> Outcome:
    start = time.monotonic()
    try:
        process = subprocess.Popen(stage.command, cwd=ROOT, env=environment, start_new_session=True)
    except OSError as error:
        return Outcome(stage.name, f"failed: {error}", 0.0)
    try:
        code = process.wait(stage.limit)
        status = "passed" if code == 0 else f"failed: exit code {code}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the session is its own: compilers it started go with it
        process.wait()
        status = f"failed: not done after {stage.limit} s"
    return Outcome(stage.name, status, round(time.monotonic() - start, 1))


def environment_for(machine: Machine) -> dict[str, str]:
    """The working tree and this Python's own tools first on the paths; no architecture but the one that is here."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if machine.architecture:
        environment["CUDAARCHS"] = machine.architecture
    return environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="say what would run and what would be skipped")
    parser.add_argument("--quick", action="store_true", help="smaller benchmarks")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="by name")
    args = parser.parse_args()
    machine = look_around()
    print(f"{machine.device}, torch {machine.torch}, nvcc {machine.nvcc or 'not found'}", flush=True)
    outcomes = []
    for stage in stages(machine, args.quick):
        print(f"\n== {stage.name}: {shlex.join(stage.command)}", flush=True)
        reason = reason_to_skip(stage, machine, args.only)
        if reason is not None:
            outcomes.append(Outcome(stage.name, f"skipped: {reason}", 0.0))
        elif args.dry_run:
            outcomes.append(Outcome(stage.name, "would run", 0.0))
        else:
            outcomes.append(run(stage, environment_for(machine)))
        print(f"== {stage.name} {outcomes[-1].status} ({outcomes[-1].seconds} s)", flush=True)
    print()
    for outcome in outcomes:
        print(f"{outcome.stage:<14} {outcome.seconds:>7.1f} s  {outcome.status}")
    if not args.dry_run and machine.architecture:
        name = re.sub(r"[^a-z0-9]+", "-", machine.device.lower()).strip("-")
        RESULTS.mkdir(parents=True, exist_ok=True)
        report = {**asdict(machine), "stages": [asdict(outcome) for outcome in outcomes]}
        (RESULTS / f"{name}-checks.json").write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(outcome.status.startswith("failed") for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
