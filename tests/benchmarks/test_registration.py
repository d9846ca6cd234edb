"""The comparison itself: scores by their definitions, resumed rows, measured processes; no other tool is needed."""

import argparse
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from benchmarks import registration
from benchmarks.registration import Method, Pair
from deqreg.io import write_displacement, write_landmarks
from tests.io.grids import oblique_affine

SHAPE, MOVING_SHAPE = (20, 18, 16), (22, 17, 19)
AFFINE = oblique_affine((1.0, 1.2, 1.5), (0.1, -0.1, 0.2), (10, -20, 300), SHAPE, (-1, 1, -1), (0, 1, 2))
MOVING_AFFINE = oblique_affine((1.1, 1.3, 1.2), (0.0, 0.3, 0.1), (11, -19, 301), MOVING_SHAPE, (1, 1, 1), (1, 0, 2))


def save(path, data, affine):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def field(rng):
    """[3, *S], RAS millimetres; folds somewhere."""
    noise = gaussian_filter(rng.standard_normal((3, *SHAPE)), (0, 2, 2, 2))
    return (noise / noise.std() * 2.5).astype(np.float32)


@pytest.fixture
def pair(tmp_path, rng, field):
    def images(kind, make):
        return tuple(
            save(tmp_path / f"{side}_{kind}.nii.gz", make(shape), affine)
            for side, shape, affine in (("fixed", SHAPE, AFFINE), ("moving", MOVING_SHAPE, MOVING_AFFINE))
        )

    def blobs(shape):
        noise = gaussian_filter(rng.standard_normal(shape), 2)
        return np.digitize(noise / noise.std(), [-0.5, 0.5, 1.0]).astype(np.int16)

    points = rng.random((12, 3)) * (np.array(SHAPE) - 1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    landmarks = tmp_path / "fixed.csv", tmp_path / "moving.csv"
    for path, shift in zip(landmarks, (0, 1.5), strict=True):
        write_landmarks(path, points + shift)
    truth = tmp_path / "truth.nii.gz"
    write_displacement(truth, torch.from_numpy(field * np.float32(0.8)), AFFINE)
    image = images("image", lambda shape: rng.random(shape, dtype=np.float32))
    mask = save(tmp_path / "mask.nii.gz", (rng.random(SHAPE) > 0.4).astype(np.uint8), AFFINE)
    return Pair(
        "lung", "made", *image, labels=images("labels", blobs), landmarks=landmarks, truth=truth, inside=mask,
        alike=image,
    )  # fmt: skip


@pytest.fixture
def output(tmp_path, field):
    path = tmp_path / "displacement.nii.gz"
    write_displacement(path, torch.from_numpy(field), AFFINE)
    return path


class TestScores:
    def test_by_their_definitions(self, pair, output, field):
        """The rules of a judge, written out in NumPy and SciPy."""
        d = field.astype(np.float64)
        gradient = np.array([np.gradient(component) for component in d])
        jacobian = np.einsum("iaxyz,aj->xyzij", gradient, np.linalg.inv(AFFINE[:3, :3])) + np.eye(3)
        mask = nib.load(pair.inside).get_fdata() > 0
        core = (slice(1, -1),) * 3
        determinant = np.linalg.det(jacobian[core])[mask[core]]
        error = np.linalg.norm(d - np.float32(0.8) * field, axis=0)[mask]

        index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")).reshape(3, -1)
        world = AFFINE[:3, :3] @ index + AFFINE[:3, 3:] + d.reshape(3, -1)
        to_moving = np.linalg.inv(MOVING_AFFINE)
        y = to_moving[:3, :3] @ world + to_moving[:3, 3:]
        fixed, moving = (nib.load(path).get_fdata().astype(int) for path in pair.labels)
        # the box of the voxels reaches half a voxel past their centres
        inside = np.all((y >= -0.5) & (y < np.array(MOVING_SHAPE)[:, None] - 0.5), axis=0)
        warped = (map_coordinates(moving, y, order=0, mode="nearest") * inside).reshape(SHAPE)
        overlaps, distances = [], []
        for label in (1, 2, 3):
            a, b = fixed == label, warped == label
            overlaps.append(2 * np.sum(a & b) / (np.sum(a) + np.sum(b)))
            distances.append(hausdorff95(a, b))

        points = [np.loadtxt(path, delimiter=",", skiprows=1) for path in pair.landmarks]
        voxels = nib.affines.apply_affine(np.linalg.inv(AFFINE), points[0]).T
        at_points = np.stack([map_coordinates(c, voxels, order=1, mode="nearest") for c in d], axis=1)
        tre = np.linalg.norm(points[0] + at_points - points[1], axis=1)

        found = registration.score(pair, output)
        assert 0.5 < found["folding_percent"] < 50
        expected = {
            "folding_percent": 100 * np.mean(determinant <= 0),
            "sd_log_jacobian": np.log(np.clip(determinant, 1e-9, 1e9)).std(),
            "endpoint_error_mean_mm": error.mean(), "endpoint_error_p95_mm": np.percentile(error, 95),
            "labels": 3, "dice_mean": np.mean(overlaps), "hd95_mean_mm": np.mean(distances),
            "tre_mean_mm": tre.mean(), "tre_median_mm": np.median(tre), "tre_p90_mm": np.percentile(tre, 90),
            "tre_max_mm": tre.max(),
        }  # fmt: skip
        # the file and the image coordinates are float32
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)
        assert set(found) == {*expected, "local_correlation"}

    def test_local_correlation_is_1_where_the_images_are_alike(self, pair, tmp_path):
        image = pair.fixed
        alike = Pair("contrasts", "same", image, image, alike=(image, image))
        zero = tmp_path / "zero.nii.gz"
        write_displacement(zero, torch.zeros(3, *SHAPE), AFFINE)
        assert registration.score(alike, zero)["local_correlation"] == pytest.approx(1, abs=1e-3)
        shift = tmp_path / "shift.nii.gz"
        write_displacement(shift, torch.full((3, *SHAPE), 4.0), AFFINE)
        assert registration.score(alike, shift)["local_correlation"] < 0.3

    def test_a_field_on_another_grid_is_refused(self, pair, tmp_path):
        path = tmp_path / "small.nii.gz"
        write_displacement(path, torch.zeros(3, 8, 8, 8), AFFINE)
        with pytest.raises(ValueError, match="must be on the grid of"):
            registration.score(pair, path)

    def test_a_judge_is_asked_about_the_same_files(self, pair, output, tmp_path):
        judge = tmp_path / "judge.py"
        judge.write_text("import json, sys; print(json.dumps({'words': sys.argv[1:], 'dice_mean': 0.5}))")
        found = registration.judged(judge, pair, output)
        pairs = dict(zip(found["words"][::2], found["words"][1::2], strict=True))
        assert pairs == {
            "--displacement": str(output), "--true-displacement": str(pair.truth), "--mask": str(pair.inside),
            "--fixed-labels": str(pair.labels[0]), "--moving-labels": str(pair.labels[1]),
            "--fixed-landmarks": str(pair.landmarks[0]), "--moving-landmarks": str(pair.landmarks[1]),
        }  # fmt: skip
        ours = {"dice_mean": 0.625, "hd95_mean_mm": 2.0}
        assert registration.largest_difference(ours, found) == {
            "largest": 0.125, "of": "dice_mean", "compared": ["dice_mean"],
        }  # fmt: skip


def hausdorff95(a, b):
    """Between the voxels with a face neighbour outside, on the grid of AFFINE."""
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    surfaces = []
    for inside in (a, b):
        padded = np.pad(inside, 1)
        near = np.zeros_like(padded)
        for axis in range(3):
            near |= np.roll(~padded, 1, axis) | np.roll(~padded, -1, axis)
        surfaces.append(inside & near[1:-1, 1:-1, 1:-1])
    there = distance_transform_edt(~surfaces[1], sampling=spacing)[surfaces[0]]
    back = distance_transform_edt(~surfaces[0], sampling=spacing)[surfaces[1]]
    return max(np.percentile(there, 95), np.percentile(back, 95))


class TestProcesses:
    def test_time_and_memory_are_the_process_s_own(self, tmp_path):
        words = [sys.executable, "-c", "import time; x = b'x' * 300_000_000; time.sleep(0.5)"]
        big = registration.measured(words, 1, tmp_path / "log", 60)
        small = registration.measured([sys.executable, "-c", "pass"], 1, tmp_path / "log", 60)
        assert "failed" not in big
        assert 0.5 < big["seconds"] < 30
        assert 300e6 < big["peak_memory_bytes"] < 500e6
        # not the largest of all children so far
        assert small["peak_memory_bytes"] < 200e6
        assert big["other_cores"] is None or big["other_cores"] >= 0

    def test_threads_are_the_same_for_every_library(self, tmp_path):
        code = "import os; print(sorted(v for k, v in os.environ.items() if k.endswith('_THREADS')))"
        registration.measured([sys.executable, "-c", code], 3, tmp_path / "log", 60)
        assert (tmp_path / "log").read_text().count("'3'") >= 4

    def test_a_failure_says_why(self, tmp_path):
        words = [sys.executable, "-c", "raise ValueError('no such metric')"]
        assert registration.measured(words, 1, tmp_path / "log", 60)["failed"] == "exit 1: ValueError: no such metric"

    def test_a_process_past_its_limit_is_ended(self, tmp_path):
        row = registration.measured([sys.executable, "-c", "import time; time.sleep(60)"], 1, tmp_path / "log", 0.5)
        assert row["failed"].startswith("exit -9")
        assert row["seconds"] < 30


class TestRows:
    @pytest.fixture
    def computed(self, monkeypatch, tmp_path):
        """What was registered, in place of registering it."""
        done = []

        def row_of(pair, method, versions, args):
            done.append(method.name)
            scores = {"tre_mean_mm": 1.0 + len(done), "folding_percent": 0.0}
            usage = {"seconds": 2.0, "peak_memory_bytes": 10**9, "other_cores": 0.0}
            return registration.identity_of(pair, method, versions, args.threads) | {"scores": scores} | usage

        monkeypatch.setattr(registration, "RESULTS", tmp_path / "results")
        monkeypatch.setattr(registration, "row_of", row_of)
        monkeypatch.setattr(registration, "METHODS", [Method("a", "ants", {"x": (1, 2)}), Method("g", "greedy")])
        return done

    def run(self, pair, versions, **changes):
        args = argparse.Namespace(methods="", again=False, threads=2, **changes)
        registration.run("lung", [pair], {name: {name: v} for name, v in versions.items()}, args)

    def test_what_is_there_is_not_computed_again(self, computed, pair):
        self.run(pair, {"ants": "1", "greedy": "1"})
        assert computed == ["a", "g"]
        self.run(pair, {"ants": "1", "greedy": "1"})
        assert computed == ["a", "g"]
        self.run(pair, {"ants": "1", "greedy": "2"})
        assert computed == ["a", "g", "g"]
        rows = registration.read_rows("lung")
        # a newer row takes the old one's place
        assert [(r["method"], r["scores"].get("tre_mean_mm")) for r in rows if r["method"] != "before"] == [
            ("a", 2.0), ("g", 4.0),
        ]  # fmt: skip

    def test_a_tool_that_is_not_there_is_left_out(self, computed, pair):
        self.run(pair, {"greedy": "1"})
        assert computed == ["g"]

    def test_code_that_is_not_committed_is_always_run(self, computed, pair):
        for _ in range(2):
            self.run(pair, {"greedy": "1+abc.changed"})
        assert computed == ["g", "g"]

    def test_table(self, computed, pair):
        self.run(pair, {"ants": "1", "greedy": "1"})
        registration.keep("lung", {"pair": "other", "method": "a", "failed": "exit 1: no"})
        head, *lines = registration.table(registration.read_rows("lung")).splitlines()
        # columns that no row has a score for are left out
        assert head.split()[:4] == ["method", "pairs", "Dice", "HD95"]
        assert "local" in head  # of the pair before registration
        line = next(line for line in lines if line.startswith("a "))
        assert line.split()[1] == "1"
        assert "2.00" in line

    def test_plot(self, computed, pair):
        self.run(pair, {"ants": "1", "greedy": "1"})
        path = registration.plot("lung", registration.read_rows("lung"))
        assert path.stat().st_size > 5000


class TestPairs:
    def test_examples_are_there(self):
        pairs = registration.examples()
        assert [pair.data for pair in pairs] == ["lung", "known_field", *["contrasts"] * 3]
        for pair in pairs:
            files = [pair.fixed, pair.moving, pair.truth, pair.inside]
            for both in (pair.masks, pair.labels, pair.landmarks, pair.alike):
                files += both or ()
            assert all(Path(file).is_file() for file in files if file is not None)

    def test_learn2reg(self, tmp_path):
        cases = [{"image": f"images/{n}.nii.gz", "label": f"labels/{n}.nii.gz"} for n in "abc"]
        dataset = {
            "training": cases[:1], "validation": cases[1:],
            "registration_val": [{"fixed": "images/b.nii.gz", "moving": "images/c.nii.gz"}],
        }  # fmt: skip
        (tmp_path / "dataset.json").write_text(json.dumps(dataset))
        (pair,) = registration.learn2reg(tmp_path / "dataset.json")
        assert pair.name == "b-c"
        assert pair.moving == tmp_path / "images/c.nii.gz"
        assert pair.labels == (tmp_path / "labels/b.nii.gz", tmp_path / "labels/c.nii.gz")

    def test_method_names_are_unique(self):
        names = [method.name for method in registration.METHODS]
        assert len(set(names)) == len(names)


def test_deqreg_is_run_as_a_user_would_and_scored(pair, tmp_path):
    """The whole way through the command, on images that are alike; and what a peer would be told."""
    smooth = gaussian_filter(np.random.default_rng(1).standard_normal(SHAPE), 1.5).astype(np.float32)
    image = save(tmp_path / "smooth.nii.gz", smooth, AFFINE)
    same = Pair("known_field", "same", image, image, masks=(pair.inside, pair.inside))
    method = Method("deqreg", "deqreg", {"initial": "identity"})
    args = argparse.Namespace(threads=1, work=tmp_path, limit=120, judge=None, peers_python=None)
    row = registration.row_of(same, method, {"deqreg": "1"}, args)
    assert "failed" not in row
    assert row["scores"]["folding_percent"] == 0
    assert row["peak_memory_bytes"] > 50e6
    command, output = registration.peer_command(same, Method("g", "greedy"), tmp_path, 1, "python")
    job = json.loads(Path(command[-1]).read_text())
    assert (job["fixed_mask"], job["masks"], job["affine"]) == (str(pair.inside), "own", False)
    assert output == tmp_path / "displacement.nii.gz"
