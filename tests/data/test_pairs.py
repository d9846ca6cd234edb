"""Sampling, augmentation and batches."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from deqreg import io, ops
from deqreg.data import Augmentation, Case, Pairs, Sampler, load_cases
from deqreg.data.pairs import all_pairs
from deqreg.spatial import Grid

CPU = torch.device("cpu")
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Three blobs, their labels the thresholds, and the brightest voxels as landmarks."""
    folder, cases = tmp_path_factory.mktemp("pairs"), []
    for number in range(3):
        noise = torch.rand(1, 1, 28, 26, 24, generator=torch.Generator().manual_seed(number))
        image = ops.gaussian(noise, 2.5)[0, 0]
        image = (image - image.min()) / (image.max() - image.min())
        case = Case(*(folder / f"{number}{end}" for end in (".nii.gz", "_l.nii.gz", "_m.nii.gz", ".csv")))
        io.write_volume(case.image, image, AFFINE)
        io.write_volume(case.label, (4 * image).round(), AFFINE, dtype=np.uint8)
        io.write_volume(case.mask, image > 0.2, AFFINE, dtype=np.uint8)
        inner = torch.tensor([[8.0, 9, 10], [15, 14, 12], [20, 12, 9]])
        io.write_landmarks(case.landmarks, Grid((28, 26, 24), torch.from_numpy(AFFINE)).to_world(inner))
        cases.append(case)
    return cases, load_cases(cases, storage="float16")


def make(cases, **augmentation):
    listed, cached = cases
    return Pairs(all_pairs(listed), cached, 7, Augmentation(**augmentation))


def test_every_pass_holds_each_once_and_any_place_can_be_asked_for():
    sampler = Sampler(11, seed=3)
    order = [sampler[place] for place in range(33)]
    assert [sorted(order[i : i + 11]) for i in (0, 11, 22)] == [list(range(11))] * 3
    assert order[:11] != order[11:22]
    assert [Sampler(11, seed=3)[place] for place in (30, 2, 17)] == [order[place] for place in (30, 2, 17)]
    assert [Sampler(11, seed=4)[place] for place in range(33)] != order


def test_streams_of_random_numbers_differ():
    sampler = Sampler(2, seed=0)
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    draws = {float(torch.rand((), generator=sampler.generator(*place))) for place in places}
    assert len(draws) == 4


def test_a_place_gives_the_same_pair_in_any_order_and_batch(cases):
    how = {"flip": (0, 2), "deform": 0.5, "synthetic": 0.5, "gamma": 0.2, "contrast": 0.2, "noise": 0.02}
    a, b = make(cases, **how), make(cases, **how)
    together = a.shuffled([3, 9], CPU)
    apart = [b.shuffled([place], CPU) for place in (9, 3)][::-1]
    for name in ("fixed", "moving", "fixed_input", "moving_input", "fixed_labels", "moving_labels", "fixed_mask"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(part, name) for part in apart])), name


def test_nothing_changes_by_default(cases):
    pairs = make(cases)
    batch, listed = pairs.shuffled([2], CPU), pairs.listed(pairs.sampler[2], CPU)
    assert torch.equal(batch.fixed, listed.fixed)
    assert torch.equal(batch.fixed_input, listed.fixed)
    assert batch.truth is None
    assert not batch.known.any()


def test_a_synthetic_pair_has_its_true_displacement(cases):
    batch = make(cases, synthetic=1.0, amplitude=3.0, smoothness=8.0, gamma=0.3).shuffled([0, 1, 2], CPU)
    assert batch.known.all()
    assert torch.equal(batch.fixed, ops.warp(batch.moving, batch.truth))
    warped = ops.warp(batch.moving_labels[:, None].float(), batch.truth, interpolation="nearest")[:, 0]
    assert torch.equal(batch.fixed_labels, warped.to(batch.fixed_labels.dtype))
    assert (ops.jacobian_determinant(batch.truth) > 0).all()
    assert batch.truth.abs().max() > 0.5
    assert not torch.equal(batch.fixed_input, batch.fixed)
    assert torch.equal(batch.fixed_input, batch.fixed_input.clamp(0, 1))


def test_velocities_have_the_size_they_were_asked_for():
    how = Augmentation(amplitude=3.0, smoothness=8.0)
    sizes = []
    for seed in range(20):
        v = how.velocity((30, 20), (2.0, 3.0), torch.Generator().manual_seed(seed))
        millimetres = v * torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
        sizes.append(float(millimetres.square().sum(1).mean().sqrt()))
    # interpolation between the drawn voxels takes a little off, and each draws its own share of the amplitude
    assert max(sizes) < 3.0 * 1.1
    assert max(sizes) > 2.0
    assert min(sizes) < 1.0


def test_landmarks_follow_their_image(cases):
    """A smooth bump at each landmark is still there, under the landmark, after mirroring and deforming."""
    batch = make(cases, flip=(0, 1, 2), deform=1.0, amplitude=3.0, smoothness=10.0).shuffled([0], CPU)
    plain = make(cases)
    listed = plain.listed(plain.sampler[0], CPU)
    for (image, points), (before, earlier) in zip(
        ((batch.fixed, batch.points[0][0]), (batch.moving, batch.points[0][1])),
        ((listed.fixed, listed.points[0][0]), (listed.moving, listed.points[0][1])),
        strict=True,
    ):
        assert (points - earlier).abs().max() > 0.1
        now, then = (value_at(*where) for where in ((image, points), (before, earlier)))
        # two linear interpolations of a smooth image, and an inverse that is exact in the continuum
        torch.testing.assert_close(now, then, atol=0.02, rtol=0)


def value_at(image, points):
    return torch.stack([sample_one(image[0, 0], p) for p in points[0]])


def sample_one(image, point):
    where = torch.zeros(1, 3, 1, 1, 1) + point.view(1, 3, 1, 1, 1)
    return ops.warp(image[None, None], where)[0, 0, 0, 0, 0]


def test_a_pair_without_labels_or_mask_leaves_them_to_the_others(cases):
    listed, cached = cases
    bare = replace(cached[listed[2].image], labels=None, mask=None)
    pairs = Pairs([*pairwise(listed), (listed[2], listed[0])], {**cached, listed[2].image: bare})
    place = {pairs.sampler[place]: place for place in range(3)}
    batch = pairs.shuffled([place[0], place[1], place[2]], CPU)  # (0, 1), (1, bare), (bare, 0)
    alone = pairs.listed(0, CPU)
    for name in ("fixed_labels", "moving_labels", "fixed_mask"):
        whole, own = getattr(batch, name), getattr(alone, name)
        assert (whole.dtype, whole.shape[1:]) == (own.dtype, own.shape[1:])
        assert torch.equal(whole[:1], own)
    assert not batch.moving_labels[1].any()
    assert not batch.fixed_labels[2].any()
    assert batch.fixed_mask[2].all()
    bare_pair = Pairs([(listed[2], listed[2])], {listed[2].image: bare}).listed(0, CPU)
    assert (bare_pair.fixed_labels, bare_pair.moving_labels, bare_pair.fixed_mask) == (None, None, None)


def test_pairs_of_different_shapes_are_refused(cases, tmp_path):
    listed, cached = cases
    io.write_volume(tmp_path / "a.nii.gz", torch.rand(28, 26, 20), AFFINE)
    other = Case(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="must have one shape"):
        Pairs([(listed[0], other)], {**cached, **load_cases([other])})


@pytest.mark.parametrize(("edge", "fits"), [(1.0004, True), (3.0, False)])
def test_pairs_of_different_spacings_are_refused(tmp_path, edge, fits):
    listed = [Case(tmp_path / "a.nii.gz"), Case(tmp_path / "b.nii.gz")]
    for case, size in zip(listed, (1.0, edge), strict=True):
        io.write_volume(case.image, torch.rand(8, 8, 8), np.diag([1.0, size, 1.0, 1.0]))
    refused = pytest.raises(ValueError, match=r"spacing, got \[1.*\] mm for a.nii.gz and \[1.0, 3.0, 1.0\] mm")
    with nullcontext() if fits else refused:
        Pairs([(listed[0], listed[1])], load_cases(listed))


def test_only_axes_of_the_images_are_mirrored(tmp_path):
    case = Case(tmp_path / "plane.nii.gz")
    io.write_volume(case.image, torch.rand(8, 8), AFFINE)
    with pytest.raises(ValueError, match=r"flip must name axes of the images, below 2, got \[2\]"):
        Pairs([(case, case)], load_cases([case]), augmentation=Augmentation(flip=(2,)))


def test_a_batch_has_the_voxels_of_its_own_pairs(tmp_path):
    listed = []
    for number, edge in enumerate((1.0, 2.0)):
        listed.append(Case(tmp_path / f"{number}.nii.gz"))
        io.write_volume(listed[-1].image, torch.rand(8, 8, 8), np.diag([edge, edge, edge, 1]))
    pairs = Pairs([(case, case) for case in listed], load_cases(listed))
    for place in (0, 1):
        edge = 1.0 + pairs.sampler[place]
        assert pairs.shuffled([place], CPU).spacing == (edge, edge, edge)
    with pytest.raises(ValueError, match="must have one voxel spacing, got"):
        pairs.shuffled([0, 1], CPU)


@pytest.mark.parametrize(
    "wrong", [{"flip": (3,)}, {"deform": 2.0}, {"synthetic": -0.1}, {"smoothness": 0}, {"noise": -1}, {"amplitude": -1}]
)
def test_augmentation_checks_its_numbers(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)
