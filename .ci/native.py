#!/usr/bin/env python3
"""Build the native layer on its own, run its tests, and hold the CUDA kernels to no spills where nvcc is.

    python .ci/native.py [--build build/native] [--arch 80 --arch 90] [--no-tests]

Without nvcc the CPU kernels are built and the CUDA kernels are tested by emulation only; the report says so. The
binding is compiled too where torch is installed, for CUDA even against a torch without it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILDING = re.compile(r"^\[\d+/\d+\] Building CUDA object (\S+)")
COMPILING = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Kernel:
    """What ptxas says of one instance of a kernel on one architecture; sizes in bytes."""

    source: str
    name: str
    arch: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill: int = 0


def torch_options() -> list[str]:
    """CMake's options for the binding, none without torch."""
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError:
        print("binding: skipped, torch is not installed")
        return []
    names = ("c10", "torch", "torch_cpu", "torch_cuda")
    libraries = [Path(path) / f"lib{name}.so" for path in library_paths() for name in names]
    return [
        f"-DDEQREG_TORCH_INCLUDE={';'.join(include_paths())}",
        f"-DDEQREG_TORCH_LIBRARIES={';'.join(str(p) for p in libraries if p.exists())}",
        f"-DDEQREG_PYTHON_INCLUDE={sysconfig.get_path('include')}",
    ]


def configure(build: Path, cuda: bool, archs: list[str]) -> None:
    options = [f"-DDEQREG_CUDA={'ON' if cuda else 'OFF'}", "-DBUILD_TESTING=ON", *torch_options()]
    if cuda:
        options.append(f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(archs)}")
    subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "--log-level=WARNING", *options], check=True
    )


def compile_all(build: Path) -> bool:
    """Build everything; keep what the CUDA compiler says of each object, for the next run may find it up to date."""
    logs = build / "ptxas"
    logs.mkdir(exist_ok=True)
    log = None
    with subprocess.Popen(["cmake", "--build", str(build)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("["):
                started = BUILDING.match(line)
                log = logs / f"{Path(started[1]).name}.log" if started else None
                if log is not None:
                    log.write_text("")
                print(line, end="", flush=True)
            elif log is not None:
                with log.open("a") as file:
                    file.write(line)
            if "ptxas info" not in line and not STACK.search(line) and not line.startswith("["):
                print(line, end="", flush=True)
    return process.returncode == 0


def demangle(names: list[str]) -> list[str]:
    if shutil.which("c++filt") is None:
        return names
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [name.removeprefix("void ") for name in text.splitlines()]


def read_kernels(build: Path) -> list[Kernel]:
    kernels: list[Kernel] = []
    for log in sorted((build / "ptxas").glob("*.log")):
        for line in log.read_text().splitlines():
            if found := COMPILING.search(line):
                kernels.append(Kernel(log.name.split(".")[0], found[1], found[2]))
            elif found := STACK.search(line):
                kernels[-1].stack = max(kernels[-1].stack, int(found[1]))
                kernels[-1].spill += int(found[2]) + int(found[3])
            elif found := REGISTERS.search(line):
                kernels[-1].registers = int(found[1])
                kernels[-1].shared = int(shared[1]) if (shared := SHARED.search(line)) else 0
    for kernel, name in zip(kernels, demangle([k.name for k in kernels]), strict=True):
        kernel.name = name.replace("deqreg::cuda::", "").replace("deqreg::", "").replace("(anonymous namespace)::", "")
    return kernels


def print_table(kernels: list[Kernel]) -> None:
    groups: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[f"{kernel.source}: {re.split(r'[<(]', kernel.name)[0]}", kernel.arch].append(kernel)
    print(f"{'kernel':<40} {'arch':<6} {'instances':>9} {'registers':>9} {'shared':>7} {'stack':>6} {'spill':>6}")
    for (name, arch), group in sorted(groups.items()):
        fewest, most = min(k.registers for k in group), max(k.registers for k in group)
        worst = [max(getattr(k, field) for k in group) for field in ("shared", "stack", "spill")]
        row = f"{name:<40} {arch:<6} {len(group):>9} {f'{fewest}-{most}':>9}"
        print(row, f"{worst[0]:>7} {worst[1]:>6} {worst[2]:>6}")


def check_kernels(build: Path) -> bool:
    """Print the table, write build/ptxas.json, and name every kernel that spills or keeps a stack frame."""
    kernels = read_kernels(build)
    (build / "ptxas.json").write_text(json.dumps([asdict(k) for k in kernels], indent=1))
    print_table(kernels)
    bad = [k for k in kernels if k.spill or k.stack]
    for kernel in bad:
        print(f"FAILED {kernel.arch} {kernel.name}: {kernel.spill} bytes spilled, stack frame of {kernel.stack} bytes")
    return bool(kernels) and not bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "native")
    parser.add_argument("--arch", action="append", help="CUDA architecture, repeatable (default: 80 and 90)")
    parser.add_argument("--no-tests", action="store_true", help="compile only")
    args = parser.parse_args()
    cuda = shutil.which("nvcc") is not None
    configure(args.build, cuda, args.arch or ["80", "90"])
    if not compile_all(args.build):
        return 1
    good = True
    if cuda:
        good = check_kernels(args.build)
    else:
        print("compile gate of the CUDA kernels: skipped: no nvcc on the PATH")
    if not args.no_tests:
        good = subprocess.run(["ctest", "--test-dir", str(args.build), "--output-on-failure"]).returncode == 0 and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
