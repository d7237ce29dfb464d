"""Draw figures with two intervals each as labelled points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from training.comparison.labels import Box, place_labels
from training.comparison.style import DPI, NARROW, WIDE, Drawing, Look, drawing, ends, new_figure, render, tick
from training.runs.report import Estimate


@dataclass(frozen=True)
class Point:
    """A labelled point.

    Attributes:
        label: its label.
        objective: whose colour and marker it has.
        outline: whether only the outline of the marker is drawn, for guided samples.
        x, y: its figures; lower is better in both.
        seeds: the figures of each of several seeds, which are drawn faintly.
        ringed: whether a ring sets it off from the others.
    """

    label: str
    objective: str
    outline: bool
    x: Estimate
    y: Estimate
    seeds: Sequence[tuple[float, float]] = ()
    ringed: bool = False


def draw_points(look: Look, points: Sequence[Point], x_label: str, y_label: str) -> Drawing:
    """Draw points with both intervals, and labels beside them."""
    with drawing(look):
        figure = new_figure(*((NARROW, 3.9) if look.narrow else (WIDE, 4.5)))
        axes = figure.subplots()
        for each in points:
            colour, x, y = look.colour(each.objective), each.x, each.y
            if each.seeds:
                faint = look.marker(each.objective, 4.5) | {"zorder": 1.5}
                axes.plot(*zip(*each.seeds, strict=True), color=colour, alpha=0.4, **faint)
            axes.hlines(y.value, *ends(x), colors=colour, linewidth=1.5, alpha=0.75)
            axes.vlines(x.value, *ends(y), colors=colour, linewidth=1.5, alpha=0.75)
            axes.plot(x.value, y.value, color=colour, **look.marker(each.objective, 8.5, hollow=each.outline))
            if each.ringed:
                axes.plot(
                    x.value, y.value, marker="o", linestyle="none", color=look.ink, markersize=16,
                    markerfacecolor="none", markeredgewidth=1.1,
                )  # fmt: skip
        seeds = [seed for each in points for seed in each.seeds]
        x_ends, y_ends = ([end for each in points for end in ends(getattr(each, name))] for name in "xy")
        _maybe_log(axes, "x", [*x_ends, *(x for x, _ in seeds)], at_least=0.15)
        _maybe_log(axes, "y", [*y_ends, *(y for _, y in seeds)], at_least=8)
        axes.margins(0.12)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        axes.annotate(
            "better in both ↙", (0.012, 0.015), xycoords="axes fraction", fontsize=8, color=look.faint, style="italic"
        )
        to_pixels = axes.transData.transform
        obstacles = [box for each in points for box in _boxes(to_pixels, each)]
        _label_points(axes, look, [(each, to_pixels((each.x.value, each.y.value))) for each in points], obstacles)
        return render(figure, look)


def _boxes(to_pixels: Callable[[tuple[float, float]], Any], point: Point) -> list[Box]:
    """The boxes that the marker, both intervals and the seeds of a point cover, in pixels."""
    unit, x, y = DPI / 72, point.x, point.y
    (left, middle), (right, _) = (to_pixels((end, y.value)) for end in ends(x))
    (centre, bottom), (_, top) = (to_pixels((x.value, end)) for end in ends(y))
    marker, small = (8.5 if point.ringed else 5) * unit, 3 * unit
    seeds = [to_pixels(seed) for seed in point.seeds]
    return [
        (left, middle - unit, right, middle + unit),
        (centre - unit, bottom, centre + unit, top),
        (centre - marker, middle - marker, centre + marker, middle + marker),
        *((across - small, up - small, across + small, up + small) for across, up in seeds),
    ]


def _maybe_log(axes: Any, axis: str, values: Sequence[float], at_least: float) -> None:
    """Make an axis logarithmic, with plain numbers, if positive values span a factor of more than 1 + at_least."""
    low, high = min(values), max(values)
    target = axes.xaxis if axis == "x" else axes.yaxis
    if low > 0 and high / low > 1 + at_least:
        (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
        decades = np.log10(high / low)
        # Labels of 1, 2 and 5 overlap on a phone where there are many decades.
        subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
        target.set_major_locator(
            MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]) if decades < 0.7 else LogLocator(10, subs=subs)
        )
        target.set_minor_formatter(NullFormatter())
    else:
        target.set_major_locator(MaxNLocator(6))
    target.set_major_formatter(FuncFormatter(tick))


def _label_points(axes: Any, look: Look, points: list[tuple[Point, Any]], obstacles: list[Box]) -> None:
    size = 9.0
    sizes = []
    for point, _ in points:
        text = axes.text(0, 0, point.label, fontsize=size, fontweight="bold")
        box = text.get_window_extent()
        sizes.append((box.width + 2, box.height))
        text.remove()
    frame = axes.get_window_extent()
    unit = DPI / 72
    area = (frame.x0 + 2 * unit, frame.y0 + 12 * unit, frame.x1 - 2 * unit, frame.y1 - 2 * unit)
    placed = place_labels([(x, y) for _, (x, y) in points], sizes, obstacles, area, unit)
    for (point, (x, y)), place in zip(points, placed, strict=True):
        left, bottom, right, top = place.box
        colour, away = look.colour(point.objective), 9 if point.ringed else 6
        axes.annotate(
            point.label, xy=(x / unit, y / unit), xytext=((left + right) / 2 / unit, (bottom + top) / 2 / unit),
            xycoords="figure points", textcoords="figure points", ha="center", va="center", fontsize=size,
            fontweight="bold", color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.7, "shrinkB": away}
            if place.led
            else None,
            annotation_clip=False, zorder=5,
        )  # fmt: skip
