from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import deqreg
from deqreg import io
from deqreg.quality import assess
from tests.nets.test_variational import bump, texture

DATA = Path(__file__).parent.parent / "examples" / "data"
SHAPE = (32, 30, 36)


def image(data: torch.Tensor) -> io.Volume:
    return io.Volume(data, np.eye(4))


def still() -> torch.Tensor:
    return torch.zeros(3, *SHAPE)


def test_a_good_registration_is_believed_whatever_the_contrast() -> None:
    data = texture(*SHAPE)[0, 0]
    for warped in (data, 3 - 2 * data, data + 0.02 * torch.randn(SHAPE)):
        found = assess(image(data), warped, still(), np.eye(4))
        assert (found.verdict, found.reasons) == ("plausible", ())
        assert found.local_similarity > 0.5


def test_what_does_not_look_alike_is_flagged() -> None:
    data = texture(*SHAPE)[0, 0]
    for warped in (torch.rand(SHAPE), torch.zeros(SHAPE)):
        found = assess(image(data), warped, still(), np.eye(4))
        assert found.verdict == "failed"
        assert "unlike" in found.reasons[0]


def test_likeness_has_its_price() -> None:
    data = texture(*SHAPE)[0, 0]
    noisy = data + 0.08 * torch.randn(SHAPE)
    assert assess(image(data), noisy, still(), np.eye(4)).verdict == "plausible"
    uneven = 1.4 * torch.sin(torch.arange(SHAPE[0]) / 2.0).view(-1, 1, 1).expand(SHAPE)
    everywhere = torch.ones(SHAPE)  # without it the texture would pass for a box cut out of something larger
    found = assess(image(data), noisy, torch.stack([uneven, 0 * uneven, 0 * uneven]), np.eye(4), everywhere)
    assert found.local_similarity < found.needed_similarity
    assert "uneven" in found.reasons[0]


@pytest.mark.parametrize(("shape", "whole", "cut"), [(SHAPE, 2.1, 1.15), (SHAPE[:2], 1.5, 1.15)])
def test_where_the_body_is_cut_off_a_field_may_cost_more(shape: tuple[int, ...], whole: float, cut: float) -> None:
    data, inner = torch.rand(shape) + 1, (slice(2, -2),) * len(shape)
    framed = torch.zeros(shape)
    framed[inner] = data[inner]
    displacement = torch.zeros(len(shape), *shape)
    displacement[0] = 1.4 * torch.sin(torch.arange(shape[0]) / 2.0).view(-1, *[1] * (len(shape) - 1))
    everywhere = torch.ones(shape)
    for fixed, mask, price in ((framed, None, whole), (data, None, cut), (data, everywhere, whole)):
        found = assess(image(fixed), fixed, displacement, np.eye(4), mask)
        assert found.needed_similarity == pytest.approx(price * found.sd_log_jacobian**1.5)


def test_folds_and_a_runaway_start_are_flagged() -> None:
    data = texture(*SHAPE)[0, 0]
    mirror = still()
    mirror[0, 10:14] = -2 * torch.arange(4.0).view(-1, 1, 1)
    assert any("folds" in reason for reason in assess(image(data), data, mirror, np.eye(4)).reasons)
    for scale in (0.5, 2.0):
        found = assess(image(data), data, still(), np.diag([scale, scale, scale, 1.0]))
        assert "affine" in found.reasons[0]


def test_only_the_mask_is_looked_at() -> None:
    data = texture(*SHAPE)[0, 0]
    inside = (bump(*SHAPE, height=1.0)[0, 0] > 0.3).float()
    warped = torch.where(inside > 0, data, torch.rand(SHAPE))
    assert assess(image(data), warped, still(), np.eye(4)).local_similarity < 0.5
    assert assess(image(data), warped, still(), np.eye(4), inside).local_similarity > 0.95


def test_the_report_says_what_failed() -> None:
    data = texture(*SHAPE)[0, 0]
    done = deqreg.register(data, data, initial="identity")
    assert done.report()["verdict"] == "plausible"
    report = replace(done, warped=torch.rand(SHAPE)).report()
    assert report["verdict"] == "failed"
    assert report["reasons"][0] in report["warnings"]


@pytest.mark.slow
@pytest.mark.parametrize("turned", [None, (1,), (2,), "lung"])
def test_real_heads_right_and_wrong(turned: tuple[int, ...] | str | None) -> None:
    fixed, moving = (io.read_image(str(DATA / "brain" / f"{name}.nii.gz"), name) for name in ("fixed", "moving"))
    if turned == "lung":
        moving = io.read_image(str(DATA / "lung" / "moving.nii.gz"), "moving")
    elif turned is not None:
        moving = replace(moving, data=moving.data.flip(turned))
    verdict = deqreg.register(fixed, moving).quality().verdict
    assert verdict == ("plausible" if turned is None else "failed")


def test_an_alignment_that_runs_away_is_dropped() -> None:
    data = texture(*SHAPE)[0, 0] * (bump(*SHAPE, height=1.0)[0, 0] > 0.1)
    speck = torch.zeros(SHAPE)
    speck[16, 15, 18] = 1.0
    found = deqreg.register(image(speck), image(data))
    assert 0.1 < np.linalg.det(found.affine) < 10
    assert found.quality().verdict == "failed"


def test_what_the_moving_image_does_not_reach_is_not_judged() -> None:
    data = texture(*SHAPE)[0, 0] * 1000 - 1000  # Hounsfield units: nothing, 0, is as bright as water
    reached = torch.arange(SHAPE[0]).view(-1, 1, 1).expand(SHAPE) < 12
    warped = torch.where(reached, data, 0.0)
    assert assess(image(data), warped, still(), np.eye(4)).local_similarity < 0.6
    assert assess(image(data), warped, still(), np.eye(4), reached=reached).local_similarity > 0.9
    assert assess(image(data), warped, still(), np.eye(4), torch.ones(SHAPE), reached).local_similarity > 0.9


def test_nothing_in_common_is_failed() -> None:
    data = texture(*SHAPE)[0, 0]
    found = assess(image(data), data, still(), np.eye(4), reached=torch.zeros(SHAPE, dtype=torch.bool))
    assert found.verdict == "failed"
