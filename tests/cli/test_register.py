import errno
import json
import re
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from deqreg import io
from deqreg.cli import main
from deqreg.cli.progress import ProgressLines
from tests.cli.conftest import register_flat

PRODUCTS = {
    "affine.tfm",
    "displacement.nii.gz",
    "report.html",
    "report.json",
    "report.png",
    "warped.nii.gz",
    "warped_labels.nii.gz",
}


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def report_in(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=refuse_constant)


def test_every_product_is_there_and_nothing_else(registered):
    assert {entry.name for entry in registered.straight.iterdir()} == PRODUCTS
    assert {entry.name for entry in registered.turned.iterdir()} == PRODUCTS - {"warped_labels.nii.gz"}
    # beside them, no temporary folder is left
    assert {entry.name for entry in registered.straight.parent.iterdir()} == {"straight", "turned"}


@pytest.mark.parametrize("pair", ["straight", "turned"])
def test_products_lie_on_the_fixed_grid(registered, request, pair):
    folder, out = request.getfixturevalue(pair), getattr(registered, pair)
    fixed = nib.load(folder / "fixed.nii.gz")
    warped, displacement = nib.load(out / "warped.nii.gz"), nib.load(out / "displacement.nii.gz")
    assert warped.shape == fixed.shape
    assert displacement.shape == (*fixed.shape, 1, 3)
    assert int(displacement.header["intent_code"]) == 1007
    for image in (warped, displacement):
        # the header stores the affine in float32: 1e-4 mm at a metre from the origin
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-3)
        assert image.get_data_dtype() == np.float32


@pytest.mark.parametrize("pair", ["straight", "turned"])
def test_simpleitk_reproduces_the_warped_image(registered, request, pair):
    folder, out = request.getfixturevalue(pair), getattr(registered, pair)
    field = sitk.ReadImage(str(out / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    moving = sitk.ReadImage(str(folder / "moving.nii.gz"), sitk.sitkFloat32)
    fixed = sitk.ReadImage(str(folder / "fixed.nii.gz"), sitk.sitkFloat32)
    transform = sitk.DisplacementFieldTransform(field)
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0))
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "warped.nii.gz")))
    difference = np.abs(ours - theirs)
    assert np.ptp(ours) > 500  # Hounsfield units: there is something to compare
    # float32 headers and displacements place a sample to 1e-4 mm, where the image changes by up to 500 a millimetre;
    # a point on the very border of the moving image may be inside for one and outside for the other
    assert (difference > 0.5).mean() < 1e-3


@pytest.mark.parametrize("pair", ["straight", "turned"])
def test_the_registration_is_worth_its_time(registered, pair):
    report = report_in(getattr(registered, pair))
    assert report["similarity"]["after"] > report["similarity"]["before"]
    assert report["folding_percent"] == 0.0


def test_landmarks_and_labels_are_scored(registered):
    report = report_in(registered.straight)
    assert report["tre_mm"]["before"]["mean"] == pytest.approx(35.3, abs=0.1)
    assert report["tre_mm"]["after"]["median"] < 2.5  # from voxels of 5 mm
    assert report["dice"]["after"] > 0.95


def test_the_affine_file_is_the_affine_of_the_report(registered):
    report = report_in(registered.turned)
    np.testing.assert_allclose(io.read_affine(registered.turned / "affine.tfm"), report["affine_ras_mm"], atol=1e-9)


def test_labels_keep_their_type(registered, straight):
    labels = nib.load(registered.straight / "warped_labels.nii.gz")
    assert labels.get_data_dtype() == nib.load(straight / "moving_mask.nii.gz").get_data_dtype()
    assert set(np.unique(np.asarray(labels.dataobj))) == {0, 1}


def test_the_report_says_how_it_was_made(registered):
    report = report_in(registered.straight)
    assert report["command"].startswith("deqreg register ")
    assert report["status"] in ("converged", "best effort")
    assert {"read", "affine", "resample", "write", "total"} <= report["seconds"].keys()
    stages = sum(seconds for stage, seconds in report["seconds"].items() if stage not in ("total", "write"))
    assert stages <= report["seconds"]["total"]  # which ends where writing begins
    for level in report["levels"]:
        assert len(level["residuals"]) == level["steps"]


def test_progress_and_summary(flat, tmp_path, capsys):
    assert register_flat(flat, tmp_path / "out") == 0
    streams = capsys.readouterr()
    assert re.search(
        r"^level 1/\d +\d+x\d+ +step +\d+/\d+ +residual \S+ +similarity 0\.\d+$", streams.err, re.MULTILINE
    )
    assert re.search(r"^level 1 .*Jacobian 0\.\d+ to \d\.\d+", streams.out, re.MULTILINE)
    assert re.search(r"^similarity +0\.\d+ -> 0\.\d+", streams.out, re.MULTILINE)
    assert "\x1b" not in streams.err  # no terminal, no control characters
    assert streams.out.isascii()


def test_a_second_run_replaces_the_first_and_leaves_other_files(flat, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "warped_labels.nii.gz").write_text("of an earlier run with labels")
    assert register_flat(flat, out) == 0
    assert {entry.name for entry in out.iterdir()} == PRODUCTS - {"warped_labels.nii.gz"} | {"notes.txt"}


def test_doubtful_headers_are_warned_of(flat, tmp_path, capsys):
    image = nib.load(flat / "moving.nii.gz")
    image.set_qform(np.diag([5.0, 5.0, 5.0, 1.0]), 1)
    nib.save(image, tmp_path / "moving.nii.gz")
    shutil.copy(flat / "fixed.nii.gz", tmp_path)
    assert register_flat(tmp_path, tmp_path / "out") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1
    assert "qform and sform disagree" in lines[0]
    assert [f"warning: {text}" for text in report_in(tmp_path / "out")["warnings"]] == lines


def test_interrupting_writes_nothing(flat, tmp_path, capsys, monkeypatch):
    def press_ctrl_c(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(ProgressLines, "__call__", press_ctrl_c)
    assert register_flat(flat, tmp_path / "out") == 130
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.strip() == "deqreg register: interrupted, nothing written"


def test_a_full_disk_writes_nothing(flat, tmp_path, capsys, monkeypatch):
    def fill(path, report):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("deqreg.report.write_json", fill)
    assert register_flat(flat, tmp_path / "new" / "out") == 2
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.splitlines()[-1].endswith("report.json: No space left on device")


def test_without_matplotlib_the_picture_is_left_out(flat, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert register_flat(flat, tmp_path / "out") == 0
    assert not (tmp_path / "out" / "report.png").exists()
    assert "pip install 'deqreg[cli]'" in capsys.readouterr().err
    assert "Matplotlib is not installed" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_learned_method_without_safetensors_is_one_line(flat, tmp_path, one_line, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    images = [flat / "fixed.nii.gz", flat / "moving.nii.gz"]
    line = one_line("register", *images, "-o", tmp_path / "out", "--preset", "brain", "--method", "equilibrium")
    assert line.endswith("--method equilibrium reads its weights with safetensors: pip install 'deqreg[cli]'")


def image_of(array):
    return nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]))


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def missing(folder):
    return [folder / "none.nii.gz", folder / "good.nii.gz"]


def text(folder):
    (folder / "bad.nii.gz").write_text("this is no image")
    return [folder / "good.nii.gz", folder / "bad.nii.gz"]


def truncated(folder):
    content = (folder / "good.nii.gz").read_bytes()
    (folder / "bad.nii.gz").write_bytes(content[: len(content) // 2])
    return [folder / "good.nii.gz", folder / "bad.nii.gz"]


def series(folder):
    nib.save(image_of(ramp(8, 8, 8, 5)), folder / "bad.nii.gz")
    return [folder / "bad.nii.gz", folder / "good.nii.gz"]


def constant(folder):
    nib.save(image_of(np.full((8, 8, 8), 3.0, np.float32)), folder / "bad.nii.gz")
    return [folder / "good.nii.gz", folder / "bad.nii.gz"]


def nans(folder):
    array = ramp(8, 8, 8)
    array[2, 3, 4] = np.nan
    nib.save(image_of(array), folder / "bad.nii.gz")
    return [folder / "good.nii.gz", folder / "bad.nii.gz"]


def empty_mask(folder):
    nib.save(image_of(np.zeros((8, 8, 8), np.uint8)), folder / "bad.nii.gz")
    return [folder / "good.nii.gz", folder / "good.nii.gz", "--fixed-mask", folder / "bad.nii.gz"]


def landmarks_outside(folder):
    (folder / "points.csv").write_text("x,y,z\n1,2,3\n400,2,3\n")
    points = ["--fixed-landmarks", folder / "points.csv", "--moving-landmarks", folder / "points.csv"]
    return [folder / "good.nii.gz", folder / "good.nii.gz", *points]


def one_landmark_file(folder):
    (folder / "points.csv").write_text("x,y,z\n1,2,3\n")
    return [folder / "good.nii.gz", folder / "good.nii.gz", "--fixed-landmarks", folder / "points.csv"]


def two_and_three_dimensions(folder):
    nib.save(image_of(ramp(8, 8)), folder / "bad.nii.gz")
    return [folder / "good.nii.gz", folder / "bad.nii.gz"]


def unknown_preset(folder):
    return [folder / "good.nii.gz", folder / "good.nii.gz", "--preset", "elbow"]


def small_budget(folder):
    return [folder / "good.nii.gz", folder / "good.nii.gz", "--memory-budget", "10B", "--initial", "identity"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, "fixed image .*none.nii.gz: no such file"),
        (text, "moving image .*bad.nii.gz: not a gzip file"),
        (truncated, "moving image .*bad.nii.gz: cut off or damaged"),
        (series, r"fixed image .*bad.nii.gz: is a series of shape \[8, 8, 8, 5\]"),
        (constant, "moving image .*bad.nii.gz: constant"),
        (nans, "moving image .*bad.nii.gz: 1 of 512 voxels are NaN or infinite"),
        (empty_mask, "fixed mask .*bad.nii.gz: empty"),
        (landmarks_outside, "fixed landmarks .*points.csv: 1 of 2 points lie outside"),
        (one_landmark_file, "landmarks must be given for both images"),
        (two_and_three_dimensions, "moving image .*bad.nii.gz: must be 3-D"),
        (unknown_preset, "preset must be one of .*'elbow'"),
        (small_budget, "memory_budget must be at least .* got 10"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(make, says, tmp_path, one_line):
    nib.save(image_of(ramp(8, 8, 8)), tmp_path / "good.nii.gz")
    words = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    line = one_line("register", *words, "-o", tmp_path / "out" / "deep")
    assert re.search(says, line), line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_where_there_is_none(flat, tmp_path, one_line):
    line = one_line(
        "register", flat / "fixed.nii.gz", flat / "moving.nii.gz", "-o", tmp_path / "out", "--device", "cuda"
    )
    assert re.search("no GPU", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deep/out"])
def test_a_file_in_the_way_of_the_output_is_found_before_computing(flat, tmp_path, one_line, monkeypatch, below):
    def compute(*args, **options):
        raise AssertionError("computed for nothing")

    monkeypatch.setattr(sys.modules["deqreg.register"], "register", compute)
    (tmp_path / "out").write_text("a file")
    line = one_line("register", flat / "fixed.nii.gz", flat / "moving.nii.gz", "-o", tmp_path / "out" / below)
    assert re.search("output folder .*out is in the way and is no folder", line)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("option", ["moving", "fixed labels", "initial"])
def test_no_input_is_overwritten_or_removed(option, flat, tmp_path, one_line):
    out = tmp_path / "out"
    out.mkdir()
    target = out / {"moving": "warped.nii.gz", "fixed labels": "warped_labels.nii.gz", "initial": "affine.tfm"}[option]
    if option == "initial":
        io.write_affine(target, np.eye(4))
    else:
        target.write_bytes((flat / "moving.nii.gz").read_bytes())
    before = target.read_bytes()
    moving = target if option == "moving" else flat / "moving.nii.gz"
    more = [] if option == "moving" else ["--" + option.replace(" ", "-"), target]
    line = one_line("register", flat / "fixed.nii.gz", moving, "-o", out, *more)
    assert line.endswith(f"-o {target}: is the input {target}; give another place")
    assert target.read_bytes() == before


def test_what_is_not_an_option_is_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["register", "a.nii.gz", "b.nii.gz", "-o", str(tmp_path), "--smooth"])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["deqreg: unrecognized arguments: --smooth; see deqreg --help"]
