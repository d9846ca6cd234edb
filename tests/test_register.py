from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import deqreg
from deqreg import io, metrics, ops
from deqreg.presets import read_preset
from deqreg.spatial import self_similarity
from tests.nets.test_variational import bump, texture
from tests.spatial.test_affine import blobs, known
from tests.spatial.test_grid import oblique

DATA = Path(__file__).parent.parent / "examples" / "data"


def pair(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed, moving and the displacement between them, `[d, *S]`, of 1 mm voxels."""
    moving, truth = texture(*shape), bump(*shape, height=2.0)
    return ops.warp(moving, truth)[0, 0], moving[0, 0], truth[0]


@pytest.mark.parametrize("shape", [(48, 44), (32, 30, 36)])
def test_finds_a_known_deformation_of_tensors(shape: tuple[int, ...]) -> None:
    fixed, moving, truth = pair(*shape)
    found = deqreg.register(fixed, moving, initial="identity")
    inside = (truth.norm(dim=0) > 0.5).float()
    before = metrics.endpoint_error(torch.zeros_like(truth), truth, inside)["mean"]
    assert metrics.endpoint_error(found.displacement, truth, inside)["mean"] < 0.4 * before
    assert found.similarity_after > found.similarity_before
    report = found.report()
    assert report["folding_percent"] == 0
    assert report["seconds"]["total"] > 0


def test_an_image_with_itself_stays_in_place() -> None:
    image = texture(32, 30, 36)[0, 0]
    for initial in ("identity", "auto"):
        assert deqreg.register(image, image, initial=initial).displacement.abs().max() < 0.05


def test_world_result_does_not_depend_on_how_the_voxels_are_stored() -> None:
    fixed, moving, _ = pair(32, 30, 36)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    flipped = np.diag([-1.0, 1.0, -1.0, 1.0])
    flipped[[0, 2], 3] = 31, 35
    plain = deqreg.register(nib.Nifti1Image(fixed.numpy(), affine), nib.Nifti1Image(moving.numpy(), affine))
    turned = nib.Nifti1Image(moving.flip(0, 2).permute(2, 0, 1).numpy(), flipped[:, [2, 0, 1, 3]])
    other = deqreg.register(nib.Nifti1Image(fixed.numpy(), affine), turned)
    # the same samples in another order: only the order of sums differs, and what the solver makes of it
    torch.testing.assert_close(other.displacement, plain.displacement, atol=0.05, rtol=0)


def test_empty_space_around_the_images_is_left_out() -> None:
    fixed, moving, _ = pair(32, 30, 36)
    window = bump(32, 30, 36, height=1.0)[0, 0] > 0.1  # a head in an empty box
    found = []
    for before, after in ((10, 20), (25, 12)):
        images = [functional.pad(image * window, (before, after) * 3) for image in (fixed, moving)]
        displacement = deqreg.register(*images, preset="generic", initial="identity").displacement
        assert displacement.shape == (3, *images[0].shape)
        found.append(displacement[:, before:-after, before:-after, before:-after])
        # beyond the box that was solved on, the field goes on as it was there
        torch.testing.assert_close(displacement[:, 0], displacement[:, before - 9], atol=1e-5, rtol=0)  # world units
    # the same box: only the rounding of coordinates differs, and what the solver makes of it; the motion is of 2 mm
    assert (found[0] - found[1]).norm(dim=0)[window].mean() < 0.05


def test_initial_transforms_are_composed_into_the_total(tmp_path: Path) -> None:
    grid = oblique((36, 34, 30))
    world = known(3)
    affine = grid.affine.numpy()
    moving = io.Volume(blobs(grid)[0, 0], world.numpy() @ affine)
    fixed = io.Volume(moving.data, affine)
    io.write_affine(tmp_path / "start.tfm", world.numpy())
    for initial in (world.numpy(), tmp_path / "start.tfm"):
        found = deqreg.register(fixed, moving, initial=initial)
        at_origin = found.displacement[:, 0, 0, 0].double()
        corner = grid.affine[:3, 3]
        torch.testing.assert_close(at_origin, world[:3, :3] @ corner + world[:3, 3] - corner, atol=0.1, rtol=0)
        torch.testing.assert_close(found.warped, fixed.data, atol=0.02, rtol=0)
    field = tmp_path / "field.nii.gz"
    io.write_displacement(field, found.displacement, affine)
    again = deqreg.register(fixed, moving, initial=field)
    torch.testing.assert_close(again.displacement, found.displacement, atol=0.2, rtol=0)


def test_labels_and_landmarks_are_scored_and_do_not_steer(tmp_path: Path) -> None:
    fixed, moving, _ = pair(32, 30, 36)
    labels = [(image > image.median()).float() for image in (fixed, moving)]
    points = torch.tensor([[10.0, 10.0, 10.0], [20.0, 15.0, 18.0]], dtype=torch.float64)
    plain = deqreg.register(fixed, moving, initial="identity")
    scored = deqreg.register(
        fixed, moving, initial="identity", fixed_labels=labels[0], moving_labels=labels[1],
        fixed_landmarks=points, moving_landmarks=points,
    )  # fmt: skip
    assert torch.equal(plain.displacement, scored.displacement)
    report = scored.report()
    assert report["dice"]["after"] > report["dice"]["before"]
    assert report["tre_mm"]["before"]["mean"] == 0


def test_label_tensors_keep_their_type_on_file(tmp_path: Path) -> None:
    fixed, moving, _ = pair(48, 44)
    labels = (moving > moving.median()).short()
    deqreg.save(deqreg.register(fixed, moving, initial="identity", moving_labels=labels), tmp_path)
    assert nib.load(tmp_path / "warped_labels.nii.gz").get_data_dtype() == np.int16


def test_memory_budget_leaves_out_the_finest_level() -> None:
    fixed, moving, _ = pair(32, 30, 36)
    full, tight = (deqreg.register(fixed, moving, initial="identity", memory_budget=b) for b in (None, 2_000_000))
    assert len(tight.levels) < len(full.levels)
    assert any("left out" in text for text in tight.warnings)
    assert tight.displacement.shape == full.displacement.shape
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        deqreg.register(fixed, moving, memory_budget=1000)


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_one_mask_leaves_what_it_excludes_out_of_the_similarity(side: str) -> None:
    """A lesion in one image pulls at what is around it; excluded by that image's mask, much less."""
    fixed, moving, _ = pair(96, 96)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    distance = ((y - 48).square() + (x - 48).square()).sqrt()
    lesion, around = texture(96, 96, seed=1)[0, 0], ((distance > 16) & (distance < 26)).float()
    truth = deqreg.register(fixed, moving, initial="identity").displacement
    images = {"fixed": fixed, "moving": moving}
    images[side] = torch.where(distance < 14, lesion, images[side])
    masked, whole = (
        deqreg.register(**images, initial="identity", **mask).displacement
        for mask in ({f"{side}_mask": (distance >= 14).float()}, {})
    )
    masked_error, whole_error = (metrics.endpoint_error(u, truth, around)["mean"] for u in (masked, whole))
    assert masked_error < 0.6 * whole_error  # made flat instead of left out, it pulls as hard as the lesion


def test_random_numbers_of_the_caller_go_on() -> None:
    image = texture(32, 30)[0, 0]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    deqreg.register(image, image, initial="identity")
    assert torch.equal(torch.rand(3), expected)


def test_learned_update_and_its_refinement() -> None:
    moving, truth = texture(48, 44, 40), bump(48, 44, 40, height=3.0)
    head = (bump(48, 44, 40, height=1.0)[0, 0] > 0.2).float()
    fixed, moving = (
        io.Volume(image, np.eye(4)) for image in (ops.warp(moving, truth)[0, 0] * head, moving[0, 0] * head)
    )
    learned, refined = (
        deqreg.register(fixed, moving, preset="brain", method="equilibrium", refine=refine, initial="identity")
        for refine in (False, True)
    )
    # what goes on from a coarse level solves the learned coarse level alone
    assert learned.levels[0].field_shape > refined.levels[0].field_shape
    assert len(refined.levels) > 1
    # trained on heads, it makes little of this texture; the classical update goes on from what it found
    assert max(learned.similarity_before, learned.similarity_after) < refined.similarity_after
    assert learned.report()["folding_percent"] == 0


def test_landmarks_are_used_where_asked() -> None:
    image = texture(32, 30, 36)[0, 0]
    image[:, :, 16:] = 0.5  # where the images say nothing
    points = torch.tensor([[16.0, 15.0, 26.0], [16.0, 15.0, 6.0]])
    moved = points + torch.tensor([[2.0, 0, 0], [0, 0, 0]])
    errors = []
    for use in (False, True):
        done = deqreg.register(
            image, image, fixed_landmarks=points, moving_landmarks=moved, use_landmarks=use, initial="identity"
        )
        errors.append(done.accuracy()["tre_mm"]["after"]["max"])
    assert errors[0] > 1.9
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"preset": "brain", "method": "equilibrium"}])
def test_landmarks_need_what_they_pull(options: dict) -> None:
    points = {} if not options else {"fixed_landmarks": torch.ones(1, 3), "moving_landmarks": torch.ones(1, 3)}
    image = torch.rand(8, 8, 8)
    with pytest.raises(ValueError, match="use_landmarks needs"):
        deqreg.register(image, image, use_landmarks=True, **points, **options)


@pytest.mark.parametrize(("shape", "count"), [((48, 44), 1), ((32, 30, 36), 1), ((48, 44), 2), ((48, 44), 9)])
def test_the_lung_preset_is_guided_by_structure_on_the_finest_levels(
    shape: tuple[int, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed, moving, truth = pair(*shape)
    described = []

    def describe(image: Tensor, onto: tuple[int, ...]) -> Tensor:
        described.append(tuple(image.shape[2:]))
        return self_similarity(image, onto)

    # deqreg.register, by name, is the function
    monkeypatch.setattr(sys.modules["deqreg.register"], "self_similarity", describe)
    lung = read_preset("lung")
    assert lung.self_similarity == 1
    found = deqreg.register(fixed, moving, preset=replace(lung, self_similarity=count), initial="identity")
    assert described == [level.shape for level in found.levels[-count:] for _ in range(2)]
    inside = (truth.norm(dim=0) > 0.5).float()
    before = metrics.endpoint_error(torch.zeros_like(truth), truth, inside)["mean"]
    assert metrics.endpoint_error(found.displacement, truth, inside)["mean"] < 0.4 * before
    assert metrics.folding(found.displacement, found.fixed.affine) == 0


def test_same_bits_again() -> None:
    fixed, moving, _ = pair(32, 30, 36)
    results = [deqreg.register(fixed, moving, deterministic=True).displacement for _ in range(2)]
    assert torch.equal(*results)


@pytest.mark.parametrize(("edge", "preset"), [(1.0, "brain"), (2.0, "generic")])
def test_heads_are_told_by_their_empty_box_where_voxels_show_folds(edge: float, preset: str) -> None:
    fixed, moving, _ = pair(32, 30, 36)
    window = bump(32, 30, 36, height=1.0)[0, 0] > 0.1
    images = [io.Volume(image * window, np.diag([edge, edge, edge, 1.0])) for image in (fixed, moving)]
    assert deqreg.register(*images, initial="identity").settings["preset"]["name"] == preset


def test_progress_reports_every_level() -> None:
    fixed, moving, _ = pair(48, 44)
    seen: list[deqreg.Progress] = []
    found = deqreg.register(fixed, moving, progress=seen.append)
    stages = {p.stage for p in seen}
    assert {f"level {k + 1}/{len(found.levels)}" for k in range(len(found.levels))} < stages
    assert sum(p.stage == "level 1/4" for p in seen) == found.levels[0].steps


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "liver"}, "preset must be one of auto, brain, lung, generic, or a TOML file, got 'liver'"),
        ({"method": "magic"}, "method must be one of variational, equilibrium, got 'magic'"),
        ({"method": "equilibrium"}, "method equilibrium has weights for preset brain alone, got preset generic"),
        ({"refine": True}, "refine goes on from the learned field: it needs method equilibrium, got variational"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"initial": np.eye(4)}, r"initial must be a \[3, 3\] matrix for these images, got \[4, 4\]"),
        ({"initial": np.full((3, 3), np.nan)}, "initial must be a matrix of finite numbers, got NaN or infinite"),
        ({"fixed_landmarks": torch.zeros(1, 2)}, "landmarks must be given for both images"),
    ],
)
def test_errors_state_the_contract(kwargs: dict, message: str) -> None:
    fixed, moving, _ = pair(48, 44)
    with pytest.raises(ValueError, match=message):
        deqreg.register(fixed, moving, **kwargs)


def test_dimensions_must_agree() -> None:
    with pytest.raises(ValueError, match="moving image: must be 2-D like fixed image, got 3-D"):
        deqreg.register(texture(20, 20)[0, 0], texture(20, 20, 20)[0, 0])


@pytest.mark.slow
def test_known_field_is_found_to_within_half_a_voxel() -> None:
    folder = DATA / "known_field"
    found = deqreg.register(folder / "fixed.nii.gz", folder / "moving.nii.gz")
    truth = io.read_displacement(folder / "true_displacement.nii.gz")
    mask = io.read_mask(folder / "fixed_mask.nii.gz", found.fixed)
    assert metrics.endpoint_error(found.displacement, truth.displacement, mask.data)["mean"] < 0.8
    assert metrics.folding(found.displacement, found.fixed.affine) == 0


@pytest.mark.slow
def test_thick_slices_are_registered_in_millimetres() -> None:
    """The known field from slices of 6 mm, means of three: what is known at 2 mm is found to less than a slice."""
    folder = DATA / "known_field"
    whole = io.read_image(folder / "fixed.nii.gz")
    size = whole.data.shape[2] // 3
    step = np.diag([1.0, 1.0, 3.0, 1.0])
    step[2, 3] = 1.0  # the middle of three

    def thick(values: Tensor) -> Tensor:
        return values[..., : 3 * size].unflatten(-1, (size, 3)).mean(-1)

    images = [
        io.Volume(thick(io.read_image(folder / f"{name}.nii.gz").data), whole.affine @ step)
        for name in ("fixed", "moving")
    ]
    truth = thick(io.read_displacement(folder / "true_displacement.nii.gz").displacement)
    mask = thick(io.read_mask(folder / "fixed_mask.nii.gz", whole).data)
    found = deqreg.register(*images, initial="identity")
    before = metrics.endpoint_error(torch.zeros_like(truth), truth, mask)["mean"]
    error = metrics.endpoint_error(found.displacement, truth, mask)["mean"]
    assert error < 0.4 * before
    report = found.report()
    assert report["folding_percent"] == 0
    assert report["verdict"] == "plausible"


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_matrix_to_start_from(as_tensor: bool) -> None:
    fixed, moving, _ = pair(24, 22, 20)
    start = np.eye(4)
    start[0, 3] = 0.5
    found = deqreg.register(fixed, moving, initial=torch.from_numpy(start) if as_tensor else start)
    np.testing.assert_array_equal(found.affine, start)


@pytest.mark.parametrize(
    ("initial", "says"),
    [
        (np.eye(4) + 5 * np.eye(4, k=-3), "initial must be homogeneous: its last row"),
        ([[1.0, 0.0], [0.0, 1.0]], "initial must be 'auto', 'identity', a path or a matrix, got a list"),
        (None, "got a NoneType"),
    ],
)
def test_a_start_that_is_none(initial: object, says: str) -> None:
    fixed, moving, _ = pair(24, 22, 20)
    with pytest.raises(ValueError, match=says):
        deqreg.register(fixed, moving, initial=initial)  # pyright: ignore[reportArgumentType]


def test_before_is_how_the_images_lie() -> None:
    fixed, moving, _ = pair(32, 30, 36)
    labels = (fixed > fixed.median()).float() + 1
    shift = np.eye(4)
    shift[0, 3] = -3
    found = deqreg.register(
        nib.Nifti1Image(fixed.numpy(), np.eye(4)),
        nib.Nifti1Image(moving.numpy(), shift),
        fixed_labels=nib.Nifti1Image(labels.numpy().astype(np.uint8), np.eye(4)),
        moving_labels=nib.Nifti1Image(labels.numpy().astype(np.uint8), shift),
        fixed_landmarks=torch.tensor([[10.0, 11.0, 12.0]]),
        moving_landmarks=torch.tensor([[7.0, 11.0, 12.0]]),
    ).report()
    expected = metrics.dice(labels[:-3], labels[3:])
    assert found["tre_mm"]["before"]["mean"] == pytest.approx(3)
    # the three planes that moving lacks are background there
    assert found["dice"]["before"] == pytest.approx(metrics.mean_over_labels(expected), abs=0.06)
    assert found["dice"]["after"] > found["dice"]["before"] + 0.1
    assert found["similarity"]["after"] > found["similarity"]["before"] + 0.1


def test_a_thin_mask_of_one_image_counts_on_every_level() -> None:
    moving = texture(64, 60, 56)
    fixed = ops.warp(moving, bump(64, 60, 56, height=2.0))[0, 0]
    shell = torch.zeros(64, 60, 56)
    shell[30:32, 10:50, 10:46] = 1
    found = deqreg.register(fixed, moving[0, 0], fixed_mask=shell, initial="identity", preset="generic")
    assert found.similarity_after > found.similarity_before


def test_a_moving_image_that_reaches_further_counts_in_the_budget() -> None:
    image = ops.gaussian(torch.rand(1, 1, 72, 72, 72), 2.0)[0, 0]
    small = image[24:48, 24:48, 24:48].contiguous()
    within = nib.Nifti1Image(small.numpy(), np.array([[1, 0, 0, 24], [0, 1, 0, 24], [0, 0, 1, 24], [0, 0, 0, 1.0]]))
    budget = 25 * 4 * small.numel()
    alone = deqreg.register(within, within, initial="identity", memory_budget=budget)
    beside = deqreg.register(within, image, initial="identity", memory_budget=budget)
    assert len(beside.levels) < len(alone.levels)


def test_descriptors_pull_where_they_did_when_levels_are_left_out() -> None:
    fixed, moving, _ = pair(40, 40, 40)
    lung = read_preset("lung")
    assert lung.self_similarity == 1
    found = deqreg.register(fixed, moving, preset=lung, initial="identity", memory_budget=4 * 10**6)
    assert len(found.levels) < len(lung.levels)
    assert found.settings["preset"]["self_similarity"] == 0


def test_save_leaves_nothing_of_an_earlier_registration(tmp_path: Path) -> None:
    fixed, moving, _ = pair(24, 22, 20)
    ones = torch.ones_like(fixed)
    deqreg.save(
        deqreg.register(fixed, moving, initial="identity", symmetric=True, fixed_labels=ones, moving_labels=ones),
        tmp_path,
    )
    names = {entry.name for entry in tmp_path.iterdir()}
    assert {"inverse_displacement.nii.gz", "warped_labels.nii.gz"} < names
    deqreg.save(deqreg.register(fixed, moving, initial="identity"), tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == names - {
        "inverse_displacement.nii.gz",
        "warped_labels.nii.gz",
    }
