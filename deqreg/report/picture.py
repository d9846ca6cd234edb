"""report.png: a registration at a glance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deqreg.io import replacing
from deqreg.registration import Registration
from deqreg.report.layers import Layers, deformation, log_jacobian, prepare
from deqreg.report.planes import Plane, content_of, planes
from deqreg.report.summary import highlights, title_of

if TYPE_CHECKING:  # for annotations alone: only a picture needs Matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_COLUMNS = (
    "fixed",
    "moving after affine",
    "warped",
    "difference before",
    "difference after",
    "deformation",
    "log Jacobian",
)
_BACKGROUND, _TEXT, _DIM, _ACCENT = "#0b0d11", "#e9ecf1", "#929cab", "#ffb454"
# dark in the middle, so that agreement looks like the background of an image
_DIFFERENCE = ("#7fd4ff", "#2a86d1", "#103a63", "#0b0d11", "#5c2a10", "#d0651f", "#ffc07a")
_JACOBIAN = ("#5fe3c0", "#17957a", "#0c4238", "#0b0d11", "#43154a", "#a446b0", "#f3a4ff")
_FOLDED = "#ff2b2b"
# inches: the figure, and the bands that the panels leave free
_WIDTH, _LEFT, _RIGHT, _GAP, _HEADER, _TITLES, _FOOTER = 19.2, 0.5, 0.15, 0.06, 1.25, 0.36, 0.62
_TALLEST = 10.0  # all rows together: tall narrow slices are shrunk to it
_SHORTEST = 1.7  # a row: its label has to fit beside it
_DPI = 125


@dataclass(frozen=True)
class _Layout:
    """Where the panels lie, in inches from the top left, at one scale, so that slices keep their relative size."""

    rows: tuple[Plane, ...]

    @property
    def column(self) -> float:
        """The width of a column."""
        return (_WIDTH - _LEFT - _RIGHT - (len(_COLUMNS) - 1) * _GAP) / len(_COLUMNS)

    @property
    def scale(self) -> float:
        """Inches a millimetre."""
        widest, stacked = max(row.right.length for row in self.rows), sum(row.down.length for row in self.rows)
        return min(self.column / widest, _TALLEST / stacked)

    @property
    def height(self) -> float:
        """The whole figure."""
        return self.top(len(self.rows)) - _GAP + _FOOTER

    def row(self, row: int) -> float:
        """The height of a row."""
        return max(_SHORTEST, self.rows[row].down.length * self.scale)

    def left(self, column: int) -> float:
        """Where a column starts."""
        return _LEFT + column * (self.column + _GAP)

    def top(self, row: int) -> float:
        """Where a row starts; one past the last gives the footer."""
        return _HEADER + _TITLES + sum(self.row(above) + _GAP for above in range(row))

    def box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Inches from the top left to matplotlib's fractions from the bottom left."""
        return left / _WIDTH, 1 - (top + height) / self.height, width / _WIDTH, height / self.height

    def panel(self, row: int, column: int) -> tuple[float, float, float, float]:
        """A panel's box, in the middle of its column and row."""
        width, height = self.rows[row].right.length * self.scale, self.rows[row].down.length * self.scale
        left, top = self.left(column) + (self.column - width) / 2, self.top(row) + (self.row(row) - height) / 2
        return self.box(left, top, width, height)


def draw(registration: Registration, path: str | os.PathLike[str], report: Mapping[str, Any] | None = None) -> None:
    """Draw a registration and write it as PNG, whole or not at all.

    Args:
        registration: what `deqreg.register` returned.
        path: ending in .png; its folder must exist.
        report: `registration.report()`, where it has been computed already.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from deqreg import ops, register
        >>> image, path = ops.gaussian(torch.rand(1, 1, 32, 32), 2.0)[0, 0], tempfile.mkdtemp() + "/report.png"
        >>> draw(register(image, image, initial="identity"), path)
    """
    figure = compose_figure(registration, registration.report() if report is None else report)
    with replacing(path) as temporary:
        figure.savefig(temporary, pil_kwargs={"compress_level": 2})  # half the time of 6 for an eighth more


def compose_figure(registration: Registration, report: Mapping[str, Any]) -> Figure:
    """Draw a registration: the images, their differences, the deformation grid and the log-Jacobian.

    Three slices through the middle of the fixed mask, or of what stands out in the fixed image (one in 2-D), in
    radiological orientation and true proportions. A difference is `fixed - (a moving + b)`, with a and b fitted to the
    warped image, so that two contrasts can be compared. The grid shows what the deformable part adds to the affine map;
    the Jacobian is that of the total transform.

    Args:
        registration: what `deqreg.register` returned.
        report: `registration.report()`.

    Returns:
        A Matplotlib figure, 19.2 inches wide.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mask = None if registration.fixed_mask is None else registration.fixed_mask.data.numpy()
    content = content_of(registration.fixed.data.numpy(), mask)
    layers, layout = prepare(registration, content), _Layout(planes(registration.fixed.affine, content))
    figure = Figure(figsize=(_WIDTH, layout.height), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)  # measures text, whatever backend the user has chosen
    _draw_header(figure, layout, registration, report)
    _draw_titles(figure, layout)
    before, after = ([layers.difference(row, image) for row in layout.rows] for image in (1, 2))
    stretch = [log_jacobian(row, layers) for row in layout.rows]
    differences, jacobians = _Scale.of_differences(layout.rows, before), _Scale.of_jacobians(layout.rows, stretch)
    step = _grid_step(layout.rows)
    for row, plane in enumerate(layout.rows):
        panels = [_add_panel(figure, layout, row, column) for column in range(len(_COLUMNS))]
        for image, axes in enumerate(panels[:3]):
            _draw_image(axes, plane, layers, image)
        _draw_letters(panels[0], plane)
        for axes, difference in zip(panels[3:5], (before, after), strict=True):
            differences.draw(axes, plane, difference[row])
        _draw_grid(panels[5], plane, layers, step)
        jacobians.draw(panels[6], plane, stretch[row])
    _draw_footer(figure, layout, differences, jacobians, step)
    return figure


@dataclass(frozen=True)
class _Scale:
    """A colour scale that is the same on both sides of 0 and for all slices."""

    largest: float
    colours: tuple[str, ...]
    label: str
    missing: str  # the colour of what is not a number

    @classmethod
    def of_differences(cls, rows: Sequence[Plane], before: Sequence[np.ndarray]) -> _Scale:
        """Reach to the larger differences before registration, not to the few largest."""
        values = np.concatenate([_shown(row, values).ravel() for row, values in zip(rows, before, strict=True)])
        return cls(_rounded(max(_reach(values, 98), 1e-6)), _DIFFERENCE, "fixed - moving", _BACKGROUND)

    @classmethod
    def of_jacobians(cls, rows: Sequence[Plane], stretch: Sequence[np.ndarray]) -> _Scale:
        """Reach to nearly the largest stretch, or to a factor of e."""
        values = np.concatenate([_shown(row, values).ravel() for row, values in zip(rows, stretch, strict=True)])
        label = "red: folded" if np.isnan(values).any() else "log of volume"
        return cls(_rounded(min(max(_reach(values, 99.5), 0.05), 1.0)), _JACOBIAN, label, _FOLDED)

    @property
    def colourmap(self) -> Colormap:
        """What Matplotlib needs."""
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list("signed", self.colours).with_extremes(bad=self.missing)

    def draw(self, axes: Axes, plane: Plane, values: np.ndarray) -> None:
        """Fill a panel."""
        axes.imshow(
            values,
            extent=plane.box,
            cmap=self.colourmap,
            vmin=-self.largest,
            vmax=self.largest,
            interpolation="nearest",
        )
        _crop(axes, plane)

    def draw_bar(self, axes: Axes) -> None:
        """Fill a colour bar."""
        axes.imshow(np.linspace(0, 1, 256)[None], cmap=self.colourmap, aspect="auto")
        axes.set_axis_off()


def _reach(values: np.ndarray, percent: float) -> float:
    """Find the magnitude that so many of the numbers stay below."""
    finite = values[np.isfinite(values)]
    return float(np.percentile(np.abs(finite), percent)) if finite.size else 0.0


def _shown(plane: Plane, values: np.ndarray) -> np.ndarray:
    """Keep the rows and columns that are inside the panel."""
    rows, columns = (
        slice(int(edge.shown[0] / edge.spacing), max(1, round(edge.shown[1] / edge.spacing)))
        for edge in (plane.down, plane.right)
    )
    return values[rows, columns]


def _add_panel(figure: Figure, layout: _Layout, row: int, column: int) -> Axes:
    axes = figure.add_axes(layout.panel(row, column), facecolor=_BACKGROUND)
    axes.set_axis_off()
    return axes


def _crop(axes: Axes, plane: Plane) -> None:
    axes.set_xlim(*plane.right.shown)
    axes.set_ylim(plane.down.shown[1], plane.down.shown[0])
    axes.set_aspect("auto")  # the panel's box has the true proportions


def _draw_image(axes: Axes, plane: Plane, layers: Layers, image: int, brightness: float = 1.0) -> None:
    """Draw an image, and the fixed mask's outline on it."""
    low, high = layers.windows[image]
    grey = np.clip((layers.image(plane, image) - low) / (high - low), 0, 1) * brightness
    axes.imshow(grey, extent=plane.box, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
    if layers.outline is not None and brightness == 1.0:
        inside = plane.cut(layers.outline)
        if inside.any() and not inside.all():
            left, right, bottom, top = plane.box
            axes.contour(
                inside, levels=[0.5], extent=(left, right, top, bottom), colors=_ACCENT, linewidths=0.8, alpha=0.85
            )
    _crop(axes, plane)


def _draw_grid(axes: Axes, plane: Plane, layers: Layers, step: float) -> None:
    """Draw the fixed image dimly, and lines of equal fixed coordinate where the deformable part takes them."""
    from matplotlib.collections import LineCollection

    _draw_image(axes, plane, layers, 0, brightness=0.55)
    down, right = deformation(plane, layers)
    rows, columns = (
        (np.arange(size) + 0.5) * edge.spacing for size, edge in zip(down.shape, (plane.down, plane.right), strict=True)
    )
    x, y = columns + right, rows[:, None] + down
    points = np.stack([x, y], axis=-1)
    stride = [max(1, round(step / edge.spacing)) for edge in (plane.down, plane.right)]
    lines = [*points[stride[0] // 2 :: stride[0]], *points[:, stride[1] // 2 :: stride[1]].swapaxes(0, 1)]
    axes.add_collection(LineCollection(lines, colors=_ACCENT, linewidths=0.7, alpha=0.9))
    _crop(axes, plane)


def _grid_step(rows: Sequence[Plane]) -> float:
    """Millimetres between grid lines: a round number that gives some fifteen lines along the shorter edge."""
    wanted = min(min(row.down.length, row.right.length) for row in rows) / 15
    magnitude = 10.0 ** np.floor(np.log10(wanted))
    return float(min((factor * magnitude for factor in (1, 2, 5, 10)), key=lambda step: abs(step - wanted)))


def _draw_letters(axes: Axes, plane: Plane) -> None:
    """Write where the patient's sides are."""
    from matplotlib.patheffects import withStroke

    right, down = plane.right.letters, plane.down.letters
    for letter, x, y, h, v in (
        (right[0], 0.02, 0.5, "left", "center"),
        (right[1], 0.98, 0.5, "right", "center"),
        (down[0], 0.5, 0.98, "center", "top"),
        (down[1], 0.5, 0.02, "center", "bottom"),
    ):
        edge = [withStroke(linewidth=2.5, foreground="black")]  # readable on bright and on dark tissue
        axes.text(x, y, letter, transform=axes.transAxes, color=_TEXT, fontsize=11, ha=h, va=v, path_effects=edge)


def _write(figure: Figure, layout: _Layout, left: float, top: float, text: str, **style: Any) -> float:
    """Write text at inches from the top left; returns where it ends, for text that starts there."""
    artist = figure.text(left / _WIDTH, 1 - top / layout.height, text, **{"color": _TEXT, "va": "center", **style})
    return artist.get_window_extent().x1 / figure.dpi


def _draw_header(figure: Figure, layout: _Layout, registration: Registration, report: Mapping[str, Any]) -> None:
    """Write what was registered and how it ended, and the figures that matter."""
    title = _shortened(title_of(registration.fixed, registration.moving), 80)
    _write(figure, layout, _LEFT, 0.32, title, fontsize=17, weight="bold")
    sentence = _shortened(registration.sentence, 110)
    _write(figure, layout, _WIDTH - _RIGHT, 0.32, sentence, color=_DIM, ha="right", fontsize=12)
    left = _LEFT
    for item in highlights(report):
        ends = [
            _write(figure, layout, left, 0.68, item.name, color=_DIM, fontsize=10.5),
            _write(figure, layout, left, 0.91, item.value, fontsize=15),
            _write(figure, layout, left, 1.13, item.detail, color=_DIM, fontsize=9.5),
        ]
        left = max(ends) + 0.45


def _draw_titles(figure: Figure, layout: _Layout) -> None:
    """Name the columns and the rows."""
    for column, title in enumerate(_COLUMNS):
        middle = layout.left(column) + layout.column / 2
        _write(figure, layout, middle, layout.top(0) - 0.16, title, fontsize=12.5, ha="center")
    for row, plane in enumerate(layout.rows):
        middle = layout.top(row) + layout.row(row) / 2
        _write(figure, layout, _LEFT / 2, middle, plane.label, color=_DIM, fontsize=11, ha="center", rotation=90)


def _draw_footer(figure: Figure, layout: _Layout, differences: _Scale, jacobians: _Scale, step: float) -> None:
    """Draw the colour bars below their columns, and say how far apart the grid lines are."""
    top = layout.top(len(layout.rows)) + 0.08
    style: dict[str, Any] = {"color": _DIM, "fontsize": 10.5}
    for scale, first, last in ((differences, 3, 4), (jacobians, 6, 6)):
        left, right = layout.left(first), layout.left(last) + layout.column
        box = layout.box(left, top, right - left, 0.09)
        scale.draw_bar(figure.add_axes(box))
        _write(figure, layout, left, top + 0.24, f"-{scale.largest:g}", **style)
        _write(figure, layout, (left + right) / 2, top + 0.24, scale.label, ha="center", **style)
        _write(figure, layout, right, top + 0.24, f"{scale.largest:g}", ha="right", **style)
    middle = layout.left(5) + layout.column / 2
    _write(figure, layout, middle, top + 0.24, f"a line every {step:g} mm", ha="center", **style)
    _write(figure, layout, _LEFT, top + 0.24, "deqreg", **style)


def _rounded(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.1e}")


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
