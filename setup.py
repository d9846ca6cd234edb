"""Builds the native extension: tells CMake where torch and Python are. The sources are listed in CMakeLists.txt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def require(tool: str, hint: str) -> str:
    """Path of a build tool, or an error that says how to get it."""
    found = shutil.which(tool)
    if found is None:
        raise SystemExit(f"deqreg needs {tool} to build, and none is on the PATH. {hint}")
    return found


def want_cuda(torch_cuda: str | None) -> bool:
    """CUDA is built when torch and a toolkit have it; DEQREG_CUDA=0|1 decides otherwise. A GPU need not be present."""
    forced = os.environ.get("DEQREG_CUDA", "")
    if forced not in ("", "0", "1"):
        raise SystemExit(f"DEQREG_CUDA must be 0 or 1, got {forced!r}")
    nvcc = shutil.which("nvcc")
    if forced == "1" and nvcc is None:
        raise SystemExit("DEQREG_CUDA=1 needs nvcc on the PATH: install the CUDA toolkit, or unset DEQREG_CUDA.")
    return forced == "1" or (forced == "" and torch_cuda is not None and nvcc is not None)


class CMakeBuild(build_ext):
    """Runs CMake with Ninja on CMakeLists.txt."""

    def build_extension(self, ext: Extension) -> None:
        try:
            import torch
            from torch.utils.cpp_extension import include_paths, library_paths
        except ImportError:
            raise SystemExit(
                "deqreg builds against an installed torch (2.11 or later), and none was found: "
                "pip install torch, then pip install --no-build-isolation ."
            ) from None
        cmake = require("cmake", "pip install cmake, or your system's package of it (3.24 or later).")
        require("ninja", "pip install ninja, or your system's package of it.")
        require("c++", "Install g++ (11 or later) or clang.")
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}-torch{torch.__version__}"
        cuda = want_cuda(torch.version.cuda)
        names = ("c10", "torch", "torch_cpu", "torch_cuda")  # the last where this torch has CUDA
        libraries = [Path(path) / f"lib{name}.so" for path in library_paths() for name in names]
        subprocess.run(
            [
                cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "--log-level=WARNING",
                f"-DDEQREG_CUDA={'ON' if cuda else 'OFF'}",
                f"-DDEQREG_TORCH_INCLUDE={';'.join(include_paths())}",
                f"-DDEQREG_TORCH_LIBRARIES={';'.join(str(p) for p in libraries if p.exists())}",
                f"-DDEQREG_PYTHON_INCLUDE={sysconfig.get_path('include')}",
                f"-DDEQREG_EXTENSION_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
                f"-DCMAKE_INSTALL_PREFIX={target}",
            ],
            check=True,
        )  # fmt: skip
        subprocess.run([cmake, "--build", str(build), "--target", "_C"], check=True)
        subprocess.run([cmake, "--install", str(build)], check=True)


setup(ext_modules=[Extension("deqreg._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
