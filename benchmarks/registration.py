"""How accurate is deqreg beside the other registration tools, on the same files and as many threads, and how fast?

    python benchmarks/registration.py [--data lung known_field contrasts] [--brain DATASET.json]
        [--peers-python PYTHON] [--methods REGEX] [--pairs REGEX] [--threads 2] [--again] [--judge SCORE.py] [--plot]

Every method registers every pair in a process of its own, one after another: deqreg by its command, the others by
`peers.py` under an interpreter that has them. `seconds` is that whole process, reading and writing included, and
`memory` the most that it held. All write the same kind of file, which deqreg.metrics scores; a judge, a script that
takes `--displacement` and the pair's files and prints JSON, is asked too where one is given, and the largest difference
is kept. `others` is how many cores other work kept busy meanwhile: a time is quotable where it is below 0.1.

Prints tables and keeps rows in benchmarks/results/registration-DATA.json. A row that is there, of the same method,
parameters, versions, threads and pair, is not computed again unless `--again`. Data sets: the pairs in examples/data,
and, as `brain`, the `registration_val` pairs of a Learn2Reg dataset.json whose images are aligned affinely.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from deqreg import _C, io, metrics, ops
from deqreg.report import write_json
from deqreg.spatial import pull

HERE = Path(__file__).resolve().parent
RESULTS, EXAMPLES = HERE / "results", HERE.parent / "examples" / "data"
QUOTABLE = 0.1  # cores busy with other work


@dataclass(frozen=True)
class Pair:
    """Two images and what they are scored by; files that are not there are None."""

    data: str
    name: str
    fixed: Path
    moving: Path
    masks: tuple[Path, Path] | None = None
    labels: tuple[Path, Path] | None = None
    landmarks: tuple[Path, Path] | None = None
    truth: Path | None = None
    inside: Path | None = None  # where the field is judged, of the fixed image
    alike: tuple[Path, Path] | None = None  # images of one contrast, scored by their local correlation
    aligned: bool = True  # affinely, so that no method has to start with that


@dataclass(frozen=True)
class Method:
    """A tool with its parameters. `on`: the data sets it is for; `masks`: as in `peers.Job`."""

    name: str
    peer: str
    parameters: dict[str, Any] = field(default_factory=dict)
    on: tuple[str, ...] = ("lung", "known_field", "brain", "contrasts")
    masks: str = "own"


# Data.


def sides(folder: Path, suffix: str) -> tuple[Path, Path]:
    return folder / f"fixed{suffix}", folder / f"moving{suffix}"


def examples() -> list[Pair]:
    lung, known, brain = (EXAMPLES / name for name in ("lung", "known_field", "brain"))
    mask = "_mask.nii.gz"
    return [
        Pair("lung", "lung", *sides(lung, ".nii.gz"), masks=sides(lung, mask), landmarks=sides(lung, "_landmarks.csv"),
             inside=lung / f"fixed{mask}", aligned=False),
        Pair("known_field", "known_field", *sides(known, ".nii.gz"), labels=sides(known, "_labels.nii.gz"),
             truth=known / "true_displacement.nii.gz", inside=known / f"fixed{mask}"),
        *(
            Pair("contrasts", f"{name} to T1", brain / "fixed.nii.gz", brain / f"moving{suffix}.nii.gz",
                 alike=sides(brain, ".nii.gz"))
            for name, suffix in (("T1", ""), ("T2", "_t2"), ("FLAIR", "_flair"))
        ),
    ]  # fmt: skip


def learn2reg(path: Path) -> list[Pair]:
    """The validation pairs of a dataset.json; labels lie beside the images under the same name."""
    dataset, root = json.loads(path.read_text()), path.resolve().parent
    label_of = {case["image"]: case["label"] for part in ("training", "validation") for case in dataset[part]}
    pairs = []
    for entry in dataset["registration_val"]:
        files = entry["fixed"], entry["moving"]
        name = "-".join(Path(file).name.split(".")[0] for file in files)
        labels = tuple(root / label_of[file] for file in files)
        pairs.append(Pair("brain", name, *(root / file for file in files), labels=labels))  # type: ignore[arg-type]
    return pairs


# Methods: each tool as its users run it, then with what was varied about it.

LEARNED = {"initial": "identity", "preset": "brain", "method": "equilibrium"}
GREEDY = {"metric": "WNCC 2x2x2", "iterations": "100x50x20", "smoothing": "2vox 0.5vox"}
FIREANTS = {"scales": [4, 2, 1], "iterations": [200, 100, 50], "cc_kernel_size": 7}
CONVEX = {"grid_sp": 6, "disp_hw": 4, "grid_sp_adam": 2, "lambda_weight": 1.25, "selected_niter": 80}
SYN_CC = {"syn_metric": "CC", "syn_sampling": 2, "reg_iterations": [100, 70, 20]}
SMALL = ("lung", "known_field")

METHODS = [
    Method("deqreg", "deqreg"),
    Method("deqreg, as they lie", "deqreg", {"initial": "identity"}, on=("known_field", "brain", "contrasts")),
    Method("deqreg, learned", "deqreg", LEARNED, on=("brain",)),
    Method("deqreg, learned and refined", "deqreg", LEARNED | {"refine": True}, on=("brain",)),
    Method("deqreg, symmetric", "deqreg", {"initial": "identity", "symmetric": True}, on=("brain",)),
    Method("deqreg, refined half-way", "deqreg", LEARNED | {"refine": True, "symmetric": True}, on=("brain",)),
    Method("deqreg, in detail", "deqreg", {"preset": "examples/presets/lung_detail.toml"}, on=("lung",)),
    Method("greedy", "greedy", GREEDY),
    Method("greedy, 3 voxels", "greedy", GREEDY | {"smoothing": "3vox 0.5vox"}, on=SMALL),
    Method("greedy, 4 voxels", "greedy", GREEDY | {"smoothing": "4vox 0.5vox"}, on=SMALL),
    Method("greedy, 3 and 1 voxels", "greedy", GREEDY | {"smoothing": "3vox 1vox"}, on=SMALL),
    Method("ANTs SyN", "ants"),
    Method("ANTs SyN, full resolution", "ants", {"reg_iterations": [100, 70, 20]}, on=SMALL),
    Method("ANTs SyN CC", "ants", SYN_CC, on=SMALL),
    Method("elastix", "elastix"),
    Method("elastix, 500 iterations", "elastix", {"bspline": {"MaximumNumberOfIterations": 500}}, on=SMALL),
    Method("elastix, 8 mm", "elastix", {"bspline": {"FinalGridSpacingInPhysicalUnits": 8}}, on=SMALL),
    Method("elastix, 16 mm", "elastix", {"bspline": {"FinalGridSpacingInPhysicalUnits": 16}}, on=SMALL),
    Method("convexAdam", "convexadam", CONVEX),
    Method("convexAdam, spacing 4", "convexadam", CONVEX | {"grid_sp": 4}, on=SMALL),
    Method("convexAdam, weight 0.6", "convexadam", CONVEX | {"lambda_weight": 0.6}, on=SMALL),
    Method("convexAdam, weight 0.3", "convexadam", CONVEX | {"lambda_weight": 0.3}, on=SMALL),
    Method("FireANTs", "fireants", FIREANTS),
    Method("FireANTs, smooth", "fireants", FIREANTS | {"smooth_grad_sigma": 3.0}, on=SMALL),
    Method("dipy SyN CC", "dipy", {"level_iters": [100, 70, 20]}, masks="none"),
    Method(
        "dipy SyN CC, radius 2", "dipy", {"level_iters": [100, 70, 20], "metric": {"radius": 2}}, on=SMALL, masks="none"
    ),
]
# On the lung also with images whose outside is made flat, as deqreg makes it, instead of masks of the tool's own.
FLAT = (
    "greedy", "greedy, 3 and 1 voxels", "ANTs SyN", "ANTs SyN, full resolution", "elastix", "convexAdam",
    "convexAdam, weight 0.6", "convexAdam, weight 0.3", "FireANTs", "FireANTs, smooth", "dipy SyN CC",
    "dipy SyN CC, radius 2",
)  # fmt: skip
METHODS += [
    replace(method, name=f"{method.name}, flat outside", on=("lung",), masks="images")
    for method in METHODS
    if method.name in FLAT
]


# Running.


def installed_version() -> str:
    try:
        return version("deqreg")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0"


def deqreg_version() -> str:
    """The version, and the last commit that the package or its kernels changed in."""

    def git(*words: str) -> str:
        try:
            return subprocess.run(("git", *words), cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    places = ("--", "../deqreg", "../csrc", "../CMakeLists.txt", "../setup.py")
    commit, changed = git("log", "-1", "--format=%h", *places), git("status", "--porcelain", *places)
    return installed_version() + (f"+{commit}" if commit else "") + (".changed" if changed else "")


def versions(peers_python: str | None) -> dict[str, dict[str, str]]:
    """Tool -> its versions, of the tools that are here."""
    found = {"deqreg": {"deqreg": deqreg_version(), "torch": torch.__version__}}
    if peers_python is not None:
        words = [peers_python, str(HERE / "peers.py"), "--installed"]
        found |= json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return found


def deqreg_command(pair: Pair, method: Method, work: Path) -> tuple[list[str], Path]:
    """As a user would write it, and where the displacement will be.

    It is given what the peers are: labels and landmarks, which it would warp and report on, are for the scores.
    """
    words = [sys.executable, "-m", "deqreg", "register", str(pair.fixed), str(pair.moving), "-o", str(work / "out")]
    for side, file in zip(("fixed", "moving"), pair.masks or (), strict=False):
        words += [f"--{side}-mask", str(file)]
    for name, value in method.parameters.items():
        of_file = HERE.parent / str(value) if str(value).endswith(".toml") else value
        words += [f"--{name}"] if value is True else [f"--{name}", str(of_file)]
    return words, work / "out" / "displacement.nii.gz"


def peer_command(pair: Pair, method: Method, work: Path, threads: int, python: str) -> tuple[list[str], Path]:
    output = work / "displacement.nii.gz"
    job = {
        "peer": method.peer, "fixed": str(pair.fixed), "moving": str(pair.moving), "output": str(output),
        "work": str(work), "parameters": method.parameters, "affine": not pair.aligned, "threads": threads,
    }  # fmt: skip
    if pair.masks is not None:
        job |= {"fixed_mask": str(pair.masks[0]), "moving_mask": str(pair.masks[1]), "masks": method.masks}
    (work / "job.json").write_text(json.dumps(job))
    return [python, str(HERE / "peers.py"), str(work / "job.json")], output


def measured(words: list[str], threads: int, log: Path, limit: float) -> dict[str, Any]:
    """Run a process to its end: its time, its peak memory, and what else the machine did."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    launcher = [sys.executable, "-S", str(HERE / "measure.py"), str(limit), str(log), *words]
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    code = found.pop("exit_code")
    if code != 0:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        found["failed"] = f"exit {code}: {last[-1].strip()[:200] if last else 'no output'}"
    return found


# Scoring.


def warp_by(y: torch.Tensor, data: torch.Tensor, interpolation: str) -> torch.Tensor:
    """An image `[*S]` at voxel coordinates `y`, `[d, *S_out]`."""
    axes = torch.meshgrid(*[torch.arange(n, dtype=y.dtype) for n in y.shape[1:]], indexing="ij")
    u = y - torch.stack(axes)
    return pull(data[None, None], u[None], torch.eye(len(y), len(y) + 1)[None], interpolation)[0, 0]


def score(pair: Pair, path: Path) -> dict[str, float]:
    """All that can be said of a displacement, under the names that a judge uses."""
    read = io.read_displacement(path)
    d, fixed, moving = read.displacement, io.read_image(pair.fixed), io.read_image(pair.moving)
    if d.shape[1:] != fixed.data.shape or not np.allclose(read.affine, fixed.affine, atol=1e-3):
        raise ValueError(f"{path}: the displacement must be on the grid of {pair.fixed}")
    inside = None if pair.inside is None else io.read_mask(pair.inside, fixed).data
    found = metrics.regularity(d, fixed.affine, inside)
    y = io.voxel_map(d, fixed.affine, moving.affine)
    if pair.truth is not None:
        error = metrics.endpoint_error(d, io.read_displacement(pair.truth).displacement, inside)
        found |= {f"endpoint_error_{key}_mm": value for key, value in error.items()}
    if pair.labels is not None:
        labels = io.read_labels(pair.labels[0], fixed).data, io.read_labels(pair.labels[1], moving).data
        warped = warp_by(y, labels[1], "nearest")
        dice = metrics.dice(labels[0], warped)
        found |= {"labels": len(dice), "dice_mean": metrics.mean_over_labels(dice)}
        found["hd95_mean_mm"] = metrics.mean_over_labels(metrics.hd95(labels[0], warped, fixed.affine))
    if pair.landmarks is not None:
        points = [io.read_landmarks(file) for file in pair.landmarks]
        error = metrics.tre(d, *points, fixed.affine)
        found |= {f"tre_{key}_mm": value for key, value in error.items()}
    if pair.alike is not None:
        found["local_correlation"] = local_correlation(pair.alike, y)
    return found


def local_correlation(files: tuple[Path, Path], y: torch.Tensor) -> float:
    """Mean squared local correlation, windows of 9 voxels, where the fixed image is not background."""
    fixed, moving = (io.read_image(file).data for file in files)
    brain = (fixed > fixed.min()).float()[None, None]
    images = [image / image.max() for image in (fixed, warp_by(y, moving, "linear"))]
    return float(ops.lncc(images[0][None, None], images[1][None, None], window=9, mask=brain))


def judged(judge: Path, pair: Pair, path: Path) -> dict[str, float]:
    """What an independent script says of the same files."""
    words = [sys.executable, str(judge), "--displacement", str(path)]
    for kind, files in (("labels", pair.labels), ("landmarks", pair.landmarks)):
        for side, file in zip(("fixed", "moving"), files or (), strict=False):
            words += [f"--{side}-{kind}", str(file)]
    for name, file in (("--true-displacement", pair.truth), ("--mask", pair.inside)):
        words += [] if file is None else [name, str(file)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def largest_difference(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, Any]:
    shared = sorted(set(ours) & set(theirs))
    key = max(shared, key=lambda name: abs(ours[name] - theirs[name]))
    return {"largest": abs(ours[key] - theirs[key]), "of": key, "compared": shared}


# Rows.


def row_of(pair: Pair, method: Method, its_versions: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """One registration, measured and scored."""
    row: dict[str, Any] = identity_of(pair, method, its_versions, args.threads)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        if method.peer == "deqreg":
            words, output = deqreg_command(pair, method, work)
        else:
            words, output = peer_command(pair, method, work, args.threads, args.peers_python)
        row |= measured(words, args.threads, work / "log.txt", args.limit)
        row["machine"] = machine()
        if "failed" not in row:
            row["scores"] = score(pair, output)
            if args.judge is not None:
                row["judge"] = largest_difference(row["scores"], judged(args.judge, pair, output))
    return row


def identity_of(pair: Pair, method: Method, its_versions: dict[str, str], threads: int) -> dict[str, Any]:
    """What makes a row the same row."""
    masks = "none" if pair.masks is None else method.masks
    return {
        "pair": pair.name, "method": method.name, "tool": method.peer, "parameters": method.parameters,
        "masks": masks, "affine_first": not pair.aligned, "versions": its_versions, "threads": threads,
    }  # fmt: skip


def before(pair: Pair) -> dict[str, Any]:
    """The scores of not registering at all."""
    fixed = io.read_image(pair.fixed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "none.nii.gz"
        io.write_displacement(path, torch.zeros(3, *fixed.data.shape), fixed.affine)
        return {"pair": pair.name, "method": "before", "scores": score(pair, path)}


def machine() -> str:
    """The processor, the instruction set that deqreg uses of it, and its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{model}, {_C.instruction_set()}, {os.cpu_count()} cores"


def results_file(data: str) -> Path:
    return RESULTS / f"registration-{data}.json"


def read_rows(data: str) -> list[dict[str, Any]]:
    path = results_file(data)
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def keep(data: str, row: dict[str, Any]) -> None:
    """Put a row in the place of those of the same pair and method."""
    others = [r for r in read_rows(data) if (r["pair"], r["method"]) != (row["pair"], row["method"])]
    RESULTS.mkdir(exist_ok=True)
    order = {name: place for place, name in enumerate(["before", *(method.name for method in METHODS)])}
    rows = sorted([*others, row], key=lambda r: (r["pair"], order.get(r["method"], len(order))))
    write_json(results_file(data), {"data": data, "rows": rows})


def is_done(rows: list[dict[str, Any]], identity: dict[str, Any]) -> bool:
    """Whether the row is there; one of code that is not committed never is."""
    plain = json.loads(json.dumps(identity))
    same = [r for r in rows if all(r.get(key) == value for key, value in plain.items()) and "failed" not in r]
    return bool(same) and ".changed" not in str(identity["versions"])


# Showing.

COLUMNS = [
    ("Dice", "dice_mean", "{:.4f}"),
    ("HD95", "hd95_mean_mm", "{:.2f}"),
    ("TRE mean", "tre_mean_mm", "{:.2f}"),
    ("median", "tre_median_mm", "{:.2f}"),
    ("p90", "tre_p90_mm", "{:.2f}"),
    ("endpoint", "endpoint_error_mean_mm", "{:.3f}"),
    ("local corr.", "local_correlation", "{:.4f}"),
    ("folding %", "folding_percent", "{:.4f}"),
    ("sd log J", "sd_log_jacobian", "{:.3f}"),
]
# data -> the score that its plot shows
HEADLINE = {
    "brain": "dice_mean",
    "lung": "tre_mean_mm",
    "known_field": "endpoint_error_mean_mm",
    "contrasts": "local_correlation",
}


def table(rows: list[dict[str, Any]]) -> str:
    """A line a method, averaged over its pairs; columns without a score are left out."""
    columns = [c for c in COLUMNS if any(c[1] in r.get("scores", {}) for r in rows)]
    head = "".join(f"{name:>12}" for name, _, _ in columns)
    lines = [f"{'method':<28}{'pairs':>6}{head}{'s':>9}{'GB':>7}{'others':>8}{'judge':>9}"]
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == method]
        good = [r for r in own if "scores" in r]
        if not good:
            lines.append(f"{method:<28}{'':>6}  {own[0].get('failed')}")
            continue
        cells = "".join(cell([r["scores"].get(key) for r in good], form, 12) for _, key, form in columns)
        used = [r for r in good if "seconds" in r]
        cells += cell([r["seconds"] for r in used], "{:.1f}", 9)
        cells += cell([r["peak_memory_bytes"] / 1e9 for r in used], "{:.2f}", 7)
        cells += cell([r["other_cores"] for r in used], "{:.2f}", 8)
        differences = [r["judge"]["largest"] for r in good if "judge" in r]
        lines.append(f"{method:<28}{len(good):>6}{cells}{max(differences):>9.0e}" if differences else
                     f"{method:<28}{len(good):>6}{cells}{'-':>9}")  # fmt: skip
    return "\n".join(lines)


def cell(values: list[float | None], form: str, width: int) -> str:
    known = [value for value in values if value is not None]
    return f"{form.format(fmean(known)) if known else '-':>{width}}"


def plot(data: str, rows: list[dict[str, Any]]) -> Path:
    """Accuracy against time, a point a method; hollow where other work ran beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    key = HEADLINE[data]
    name = next(title for title, score_key, _ in COLUMNS if score_key == key)
    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    timed = [r for r in rows if "seconds" in r and "scores" in r]
    for number, tool in enumerate(dict.fromkeys(r["tool"] for r in timed)):
        for method in dict.fromkeys(r["method"] for r in timed if r["tool"] == tool):
            own = [r for r in timed if r["method"] == method]
            x, y = fmean(r["seconds"] for r in own), fmean(r["scores"][key] for r in own)
            quiet = all(r["other_cores"] is not None and r["other_cores"] < QUOTABLE for r in own)
            axes.plot(x, y, "o", color=f"C{number}", fillstyle="full" if quiet else "none")
            axes.annotate(method, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.set(xscale="log", xlabel="seconds, whole process (hollow: other work ran beside it)", ylabel=name, title=data)
    axes.grid(alpha=0.3)
    path = results_file(data).with_suffix(".png")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def run(data: str, pairs: list[Pair], found: dict[str, dict[str, str]], args: argparse.Namespace) -> None:
    """Compute what is missing."""
    for pair in pairs:
        if args.again or not any((r["pair"], r["method"]) == (pair.name, "before") for r in read_rows(data)):
            keep(data, before(pair))
        for method in METHODS:
            wanted = data in method.on and method.peer in found and re.search(args.methods, method.name)
            if not wanted:
                continue
            identity = identity_of(pair, method, found[method.peer], args.threads)
            if is_done(read_rows(data), identity) and not args.again:
                continue
            row = row_of(pair, method, found[method.peer], args)
            keep(data, row)
            print(f"{pair.name}, {method.name}: {row.get('failed') or shown(row)}", flush=True)


def shown(row: dict[str, Any]) -> str:
    scores = " ".join(f"{key}={value:.4g}" for key, value in row["scores"].items())
    return f"{row['seconds']:.1f} s, {row['peak_memory_bytes'] / 1e9:.2f} GB, {scores}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", choices=sorted(HEADLINE), help="data sets (default: all that are there)")
    parser.add_argument("--brain", type=Path, metavar="DATASET.json", help="of the Learn2Reg layout, for `brain`")
    parser.add_argument("--peers-python", metavar="PYTHON", help="an interpreter that has the other tools")
    parser.add_argument("--methods", default="", metavar="REGEX", help="methods whose name has a match")
    parser.add_argument("--pairs", default="", metavar="REGEX", help="pairs whose name has a match")
    parser.add_argument("--threads", type=int, default=2, help="of every method (default: 2)")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="of one registration")
    parser.add_argument("--again", action="store_true", help="compute rows that are there already")
    parser.add_argument("--judge", type=Path, metavar="SCRIPT", help="scores the same files independently")
    parser.add_argument("--plot", action="store_true", help="accuracy against time, beside the rows")
    parser.add_argument("--work", type=Path, help="where temporary folders are made (default: the system's)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work = None if args.work is None else args.work.resolve()
    everything = examples() + ([] if args.brain is None else learn2reg(args.brain))
    found = versions(args.peers_python)
    print(f"{machine()}; {' '.join(shlex.quote(f'{k}={v}') for t in found.values() for k, v in t.items())}")
    for data in args.data or dict.fromkeys(pair.data for pair in everything):
        pairs = [pair for pair in everything if pair.data == data and re.search(args.pairs, pair.name)]
        run(data, pairs, found, args)
        rows = [r for r in read_rows(data) if re.search(args.pairs, r["pair"])]
        print(f"\n{data}\n{table(rows)}")
        if args.plot:
            print(plot(data, rows))


if __name__ == "__main__":
    main()
