import itertools
import sys

import matplotlib.image
import numpy as np
import pytest

from deqreg.report import draw
from deqreg.report.picture import compose_figure
from tests.report.conftest import report_of

EVERYTHING = report_of(
    dice={"before": 0.5, "after": 0.81, "labels": {"1": 0.8, "2": 0.82}},
    tre_mm={
        "before": {"mean": 35.3, "median": 35.0, "p90": 40.0, "max": 50.0},
        "after": {"mean": 1.6, "median": 1.2, "p90": 2.2, "max": 14.0},
    },
)


@pytest.mark.parametrize(
    ("shape", "mask"), [((20, 24, 18), True), ((20, 24, 18), False), ((30, 20), False), ((64, 8, 8), False)]
)
def test_no_text_overlaps_another_or_leaves_the_figure(registration, shape, mask):
    figure = compose_figure(registration(shape, mask=mask), EVERYTHING)
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.texts if text.get_text()]
    width, height = figure.canvas.get_width_height()
    for words, box in boxes:
        assert 0 <= box.x0 <= box.x1 <= width, words
        assert 0 <= box.y0 <= box.y1 <= height, words
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f"{first!r} overlaps {second!r}"
    for words, box in boxes:
        for axes in figure.axes:
            assert not box.overlaps(axes.get_window_extent()), f"{words!r} lies on a panel"


def test_the_header_names_the_images_and_the_figures(registration):
    figure = compose_figure(registration(), EVERYTHING)
    words = [text.get_text() for text in figure.texts]
    for expected in (
        "moving.nii.gz onto fixed.nii.gz",
        "Converged at every level.",
        "35.30 → 1.60 mm",
        "0.500 → 0.810",
    ):
        assert expected in words


@pytest.mark.parametrize(("shape", "panels"), [((20, 24, 18), 21), ((30, 20), 7)])
def test_panels_have_true_proportions(registration, shape, panels):
    figure = compose_figure(registration(shape, np.diag([1.0, 2.0, 4.0, 1.0])), report_of())
    drawn = figure.axes[:panels]
    scales = []
    for axes in drawn:
        box = axes.get_window_extent()
        scales += [box.width / abs(np.diff(axes.get_xlim())[0]), box.height / abs(np.diff(axes.get_ylim())[0])]
    assert len(figure.axes) == panels + 2  # and two colour bars
    np.testing.assert_allclose(scales, scales[0], rtol=1e-6)  # pixels a millimetre, both ways, everywhere


def test_folding_is_said_and_drawn(registration):
    calm = compose_figure(registration(amplitude=1.0), report_of())
    folded = compose_figure(registration(amplitude=30.0), report_of())
    assert "red: folded" not in [text.get_text() for text in calm.texts]
    assert "red: folded" in [text.get_text() for text in folded.texts]


def test_the_file_is_a_picture_and_whole(registration, tmp_path):
    path = tmp_path / "report.png"
    draw(registration(), path)
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[1] == 2400
    assert pixels[..., :3].std() > 0.05  # not blank
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.png"]


def test_drawing_leaves_the_users_matplotlib_alone(registration, tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    draw(registration((12, 12)), tmp_path / "report.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_constant_warped_image_is_drawn(registration):
    made = registration((12, 12))
    made.warped = made.warped * 0
    assert compose_figure(made, report_of()).axes
