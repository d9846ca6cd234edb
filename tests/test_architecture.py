"""The direction of imports, native and Python; quiet and light imports; docstrings that run; one op, one file a layer."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import deqreg
from deqreg import ops

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, NATIVE = ROOT / "deqreg", ROOT / "csrc"

# room of deqreg/ -> the rooms it may import from; "" is the package's own __init__. A new room states its place here.
MAY_IMPORT = {
    "_C": set(),
    "ops": {"_C"},
    "configuration": set(),
    "equilibrium": {"ops"},
    "spatial": {"equilibrium", "ops"},
    "losses": {"spatial", "ops"},
    "io": {"spatial"},
    "nets": {"equilibrium", "losses", "spatial", "ops", "io"},
    "metrics": {"io", "spatial", "ops"},
    "quality": {"metrics", "io", "spatial", "ops"},
    "registration": {"quality", "metrics", "io"},
    "data": {"io", "spatial", "ops"},
    "training": {"configuration", "data", "nets", "equilibrium", "losses", "metrics", "spatial", "ops", "io"},
    "report": {"registration", "metrics", "io"},
    "presets": {"configuration", "nets", "spatial"},
    "learned": {"registration", "nets", "equilibrium", "spatial", "ops"},
    "transforms": {"io", "spatial"},
    "levels": {"presets", "registration", "equilibrium", "spatial", "ops"},
    "symmetric": {"learned", "levels", "presets", "registration", "nets", "spatial", "ops"},
    "register": {
        "learned",
        "levels",
        "symmetric",
        "presets",
        "registration",
        "transforms",
        "nets",
        "equilibrium",
        "losses",
        "spatial",
        "ops",
        "io",
    },
    "": {"register", "registration"},
    "cli": {
        "training",
        "data",
        "metrics",
        "spatial",
        "transforms",
        "register",
        "registration",
        "report",
        "io",
        "ops",
        "_C",
    },
    "__main__": {"cli"},
}
# folder of csrc/ -> the folders it may include from; "" holds kernels.h
MAY_INCLUDE = {"core": set(), "": {"core"}, "cpu": {"", "core"}, "cuda": {"", "core"}, "bindings": {"", "core"}}


def room(path):
    """The first name below deqreg/."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported(tree, package):
    """Full names of the deqreg modules that a file imports at run time, wherever in the file."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            # `from deqreg import ops` imports a room; `from deqreg.ops import warp` names it in the base
            yield from (f"{base}.{alias.name}" if base == "deqreg" else base for alias in node.names)


def python_files():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_imports_go_down(path):
    here = room(path)
    assert here in MAY_IMPORT, f"deqreg/{here} is new: give it a place in MAY_IMPORT"
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for name in imported(ast.parse(path.read_text()), package):
        if name.split(".")[0] == "deqreg":
            there = name.split(".")[1] if "." in name else ""
            assert there == here or there in MAY_IMPORT[here], f"deqreg/{here} must not import {name}"


def test_python_layers_have_no_cycle():
    done = []
    while len(done) < len(MAY_IMPORT):
        ready = [name for name, below in MAY_IMPORT.items() if name not in done and below <= set(done)]
        assert ready, f"a cycle among {set(MAY_IMPORT) - set(done)}"
        done += ready


def native_files():
    return sorted(path for path in NATIVE.rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu"))


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", native_files(), ids=lambda path: str(path.relative_to(NATIVE)))
def test_native_includes_go_down(path):
    relative = path.relative_to(NATIVE).parts
    here = relative[0] if len(relative) > 1 else ""
    for name in includes(path):
        if not (NATIVE / name).exists():
            outside(here, name)
            continue
        there = name.split("/")[0] if "/" in name else ""
        assert there == here or there in MAY_INCLUDE[here], f"csrc/{here} must not include {name}"


def outside(here, name):
    """torch and Python belong to the bindings; CUDA to the CUDA side and to the one declaration of its launchers."""
    if name.startswith(("torch/", "ATen/", "c10/", "pybind11/", "Python.h")):
        assert here == "bindings", f"csrc/{here} must not include {name}"
    elif name.startswith(("cuda", "cub/", "cooperative_groups")):
        allowed = here in ("cuda", "bindings") or (here == "" and name == "cuda_runtime_api.h")
        assert allowed, f"csrc/{here} must not include {name}"
    else:
        assert re.fullmatch(r"[a-z_0-9]+|immintrin\.h|arm_neon\.h", name), f"csrc/{here}: what is {name}?"
        assert here == "cpu" or not name.endswith("intrin.h"), f"csrc/{here} must not use intrinsics"


@pytest.mark.parametrize("name", [name for name in ops.__all__ if callable(getattr(ops, name))])
def test_one_operator_has_one_file_in_every_layer(name):
    file = getattr(ops, name).__module__.split(".")[-1]
    # an operator's gradient, and the parts of one method, share the file that is named after what they have in common
    assert name == file or name.startswith(f"{file}_")
    places = ["deqreg/ops/{}.py", "csrc/cpu/{}.cpp", "csrc/cuda/{}.cu", "csrc/bindings/{}.h", "tests/ops/test_{}.py"]
    missing = [place.format(file) for place in places if not (ROOT / place.format(file)).is_file()]
    assert not missing, f"{name} has no {', '.join(missing)}"


def test_every_native_source_is_built():
    built = (ROOT / "CMakeLists.txt").read_text()
    missing = [path.relative_to(ROOT).as_posix() for path in native_files() if path.suffix in (".cpp", ".cu")]
    missing = [path for path in missing if path not in built]
    assert not missing, f"CMakeLists.txt does not list {', '.join(missing)}"


def modules():
    """Every module of the package but `__main__`, which runs the command."""
    walked = pkgutil.walk_packages(deqreg.__path__, "deqreg.")
    return ["deqreg", *(found.name for found in walked if found.name.split(".")[-1] not in ("__main__", "_C"))]


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_is_quiet():
    done = run_python(f"import importlib\nfor name in {modules()}: importlib.import_module(name)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_importing_needs_torch_numpy_and_nibabel_alone(path):
    tree = ast.parse(path.read_text())
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        function.body = []  # what is imported there is imported when it is needed
    needed = {name.split(".")[0] for name in imported(tree, "deqreg")}
    assert needed <= {"deqreg", "torch", "numpy", "nibabel", *sys.stdlib_module_names}


def test_help_does_not_wait_for_torch():
    done = run_python(
        "import sys\nfrom deqreg.cli import main\ntry: main(['register', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "FIXED MOVING" in done.stdout


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = sys.modules.get(name) or importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.testmod(module)
    assert result.failed == 0


@pytest.mark.parametrize("name", [name for name in modules() if name.count(".") < 2])
def test_public_functions_have_an_example(name):
    module = importlib.import_module(name)
    functions = [getattr(module, entry) for entry in getattr(module, "__all__", [])]
    bare = [entry.__name__ for entry in functions if inspect.isfunction(entry) and ">>>" not in (entry.__doc__ or "")]
    assert not bare, f"{name}: no example in {', '.join(bare)}"
