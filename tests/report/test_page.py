import base64
import re
from html.parser import HTMLParser

import pytest

from deqreg.report import write_page
from deqreg.report.page import sparkline
from tests.report.conftest import report_of


class Tags(HTMLParser):
    """Collects elements and checks that they close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


@pytest.fixture
def page(tmp_path):
    def write(title="moving onto fixed", **more):
        picture = tmp_path / "report.png"
        picture.write_bytes(b"\x89PNG bytes")
        write_page(tmp_path / "report.html", report_of(**more), title, picture)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def test_the_page_needs_nothing_else(page):
    text = page()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}
    assert "://" not in text
    assert "url(" not in text
    sources = [attributes["src"] for tag, attributes in tags.seen if tag == "img"]
    assert base64.b64decode(sources[0].removeprefix("data:image/png;base64,")) == b"\x89PNG bytes"


def test_the_page_holds_figures_levels_and_warnings(page):
    text = page(warnings=["moving image: qform and sform disagree"], dice={"before": 0.5, "after": 0.81, "labels": {}})
    for expected in ("0.500 → 0.810", "16 x 16 x 16", "0.60 to 1.70", "<svg", "qform and sform disagree", "level 1"):
        assert expected in text


def test_names_are_escaped(page):
    text = page(title="<b>&.nii.gz onto fixed", warnings=["<script>alert(1)</script>"])
    assert "&lt;b&gt;&amp;.nii.gz" in text
    assert "<script" not in text


def test_without_a_picture_or_levels(tmp_path):
    write_page(tmp_path / "report.html", report_of(levels=[]), "a onto b")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "Levels" not in text


def test_sparkline_falls_to_the_right_on_a_logarithmic_scale():
    points = re.search(r'points="([^"]+)"', sparkline([1.0, 0.1, 0.01]))[1]
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert [x for x, _ in places] == [0.0, 80.0, 160.0]
    heights = [y for _, y in places]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)  # rounded to 0.1
    assert heights[0] < heights[2]


def test_sparkline_skips_what_has_no_logarithm():
    assert sparkline([0.0, float("nan"), 1.0]) == ""
    assert sparkline([1.0, 0.0, 0.5]).count(",") == 2
