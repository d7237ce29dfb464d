"""Draw training curves, with labels at their ends."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from training.comparison.groups import intervals_over
from training.comparison.labels import spread
from training.comparison.load import Comparison
from training.comparison.metric_lines import GroupCurve, Line, group_curve, measured, training_loss
from training.comparison.run import LoadedRun
from training.comparison.section import Plot, Section
from training.comparison.style import DPI, NARROW, WIDE, Drawing, Look, drawing, new_figure, render, tick, tokens_tick


def training_section(comparison: Comparison) -> Section | None:
    """The course of the training."""
    if not any(training_loss(run) for run in comparison.runs):
        return None
    groups = [group for group in comparison.groups if group.guidance is None]
    seeds = " Thin lines are single seeds." if any(len(group.runs) > 1 for group in groups) else ""
    plot = Plot(
        "training-curves",
        "",
        "Smoothed cross-entropy of each run's own stream: with control tokens for conditional, without the filtered "
        "documents for filtering. Levels of different objectives are not comparable; held-out figures are. Bands, if "
        f"any, are 95 % intervals {intervals_over(groups, 'samples or documents')}.{seeds}",
        f"Training cross-entropy against tokens, one curve each for {', '.join(group.label for group in groups)}.",
        lambda look: training_curves(comparison, look),
    )
    return Section("Training", plots=[plot])


def training_curves(comparison: Comparison, look: Look) -> Drawing:
    """Draw the cross-entropy of the training stream and the evaluations during training, against tokens."""
    panels = _panels(comparison)
    with drawing(look):
        width = NARROW if look.narrow else WIDE
        figure = new_figure(width, 0.3 + (2.7 if look.narrow else 3.0) * len(panels))
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for index, (axes, (title, curves)) in enumerate(zip(grid, panels, strict=True)):
            axes.set_title(title)
            styles = look.lines([each.group.objective for each in curves])
            for number, (each, style) in enumerate(zip(curves, styles, strict=True)):
                x, y, below, above = np.array(each.line).T
                colour = look.colour(each.group.objective)
                axes.fill_between(x, below, above, color=colour, alpha=0.12, linewidth=0)
                seeds = [np.array(seed)[:, :2] for seed in each.seeds]
                axes.add_collection(LineCollection(seeds, colors=colour, linewidths=0.7, alpha=0.35, zorder=1.5))
                # Mark every measurement; mark a curve at a few points, which differ by group.
                every = max(1, len(x) // 6)
                marked = 1 if index else (number * every // max(1, len(curves)), every)
                axes.plot(x, y, markevery=marked, **style)
            axes.set_ylim(*_range(curves))
            axes.xaxis.set_major_formatter(FuncFormatter(tokens_tick))
            axes.yaxis.set_major_formatter(FuncFormatter(tick))
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.set_xlim(0, 1.001 * max(each.line[-1][0] for each in curves))
        grid[-1].set_xlabel("tokens trained on")
        _label_line_ends(figure, grid, look, [curves for _, curves in panels])
        return render(figure, look)


def _panels(comparison: Comparison) -> list[tuple[str, list[GroupCurve]]]:
    """The figures that were logged, each with its title."""
    figures: list[tuple[str, Callable[[LoadedRun], Line]]] = [
        ("training cross-entropy, nats per token", training_loss),
        ("misalignment of samples during training", lambda run: measured(run, "misalignment")),
        ("held-out bits per byte during training", lambda run: measured(run, "bits_per_byte")),
    ]
    if not any(measured(run, "bits_per_byte") for run in comparison.runs):
        figures[2] = ("validation: held-out bits per byte", lambda run: measured(run, "bits_per_byte", "validation"))
    groups = [group for group in comparison.groups if group.guidance is None]
    found = [(title, [each for group in groups if (each := group_curve(group, of))]) for title, of in figures]
    return [(title, curves) for title, curves in found if curves]


def _range(curves: Sequence[GroupCurve]) -> tuple[float, float]:
    """The range of values to draw: without the first steps, which would flatten everything else."""

    def later(lines: Sequence[Line], *columns: int) -> list[float]:
        points = [point for line in lines for point in line if point[0] >= 0.08 * line[-1][0]]
        return [point[column] for point in points for column in columns]

    lines = [line for each in curves for line in (each.line, *each.seeds)]
    values = later(lines, 1)
    low, high = min(values), max(values)
    room = (high - low) / 2 or abs(high) / 2 or 1.0
    # An interval over two seeds may be as wide as the whole page.
    bands = later([each.line for each in curves], 2, 3)
    low, high = max(min([low, *bands]), low - room), min(max([high, *bands]), high + room)
    margin = 0.06 * (high - low or 1)
    return low - margin, high + margin


def _label_line_ends(figure: Figure, grid: Any, look: Look, panels: Sequence[Sequence[GroupCurve]]) -> None:
    """Write the names of groups at the right ends of their curves, moved apart where curves are close."""
    size, unit = 8.5, DPI / 72
    labels = dict.fromkeys(each.group.label for curves in panels for each in curves)
    probe = [figure.text(0, 0, label, fontsize=size, fontweight="bold") for label in labels]
    room = (max(text.get_window_extent().width for text in probe) + 16 * unit) / figure.bbox.width
    for text in probe:
        text.remove()
    figure.set_layout_engine("constrained", rect=(0, 0, 1 - room, 1))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    inches = figure.dpi_scale_trans  # pixels depend on the format in which the figure is saved
    for axes, curves in zip(grid, panels, strict=True):
        to_pixels = axes.transData.transform
        frame = axes.get_window_extent()
        ends = [to_pixels(each.line[-1][:2]) for each in curves]
        heights = [min(max(end[1], frame.y0), frame.y1) for end in ends]
        gap = 12 * unit
        for each, end, height in zip(curves, ends, spread(heights, gap, frame.y0, frame.y1), strict=True):
            colour = look.colour(each.group.objective)
            left = frame.x1 + 12 * unit
            figure.text(
                left / DPI, height / DPI, each.group.label, transform=inches, va="center", fontsize=size, color=colour,
                fontweight="bold",
            )  # fmt: skip
            end_height = min(max(end[1], frame.y0), frame.y1)
            line = np.array([[end[0] + unit, left - 2 * unit], [end_height, height]]) / DPI
            figure.add_artist(Line2D(*line, transform=inches, color=colour, linewidth=0.7))
