"""Draw training curves, with labels at their ends."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from training.comparison.labels import spread
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Plot, Section
from training.comparison.style import DPI, NARROW, WIDE, Look, drawing, new_figure, tick, to_png, tokens_tick

Point = tuple[float, float, float, float]  # tokens, value, low, high


def training_section(comparison: Comparison) -> Section | None:
    """The course of the training."""
    if not any(training_loss(run) for run in comparison.runs):
        return None
    plot = Plot(
        "training-curves",
        "",
        "Smoothed cross-entropy of each run's own stream: with control tokens for conditional, without the filtered "
        "documents for filtering. Levels of different objectives are not comparable; held-out figures are. Bands, if "
        "any, are 95 % intervals.",
        "Training cross-entropy against tokens, one curve per run.",
        lambda look: training_curves(comparison, look),
    )
    return Section("Training", plots=[plot])


def training_curves(comparison: Comparison, look: Look) -> bytes:
    """Draw the cross-entropy of the training stream and the evaluations during training, against tokens."""
    panels: list[tuple[str, Callable[[LoadedRun], list[Point]]]] = [
        ("training cross-entropy, nats per token", training_loss)
    ]
    if any(_measured(run, "misalignment") for run in comparison.runs):
        panels.append(("misalignment of samples during training", lambda run: _measured(run, "misalignment")))
    if any(_measured(run, "bits_per_byte") for run in comparison.runs):
        panels.append(("held-out bits per byte during training", lambda run: _measured(run, "bits_per_byte")))
    elif any(_measured(run, "bits_per_byte", "validation") for run in comparison.runs):
        panels.append(("validation: held-out bits per byte", lambda run: _measured(run, "bits_per_byte", "validation")))
    with drawing(look):
        width = NARROW if look.narrow else WIDE
        figure = new_figure(width, 0.3 + (2.7 if look.narrow else 3.0) * len(panels))
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for index, (axes, (title, of)) in enumerate(zip(grid, panels, strict=True)):
            axes.set_title(title)
            styles = look.lines([run.facts.objective for run in comparison.runs])
            lines = [(run, style, of(run)) for run, style in zip(comparison.runs, styles, strict=True) if of(run)]
            for number, (run, style, line) in enumerate(lines):
                x, y, below, above = np.array(line).T
                axes.fill_between(x, below, above, color=look.colour(run.facts.objective), alpha=0.12, linewidth=0)
                # Mark every measurement; mark a curve at a few points, which differ by run.
                every = max(1, len(x) // 6)
                marked = 1 if index else (number * every // max(1, len(lines)), every)
                axes.plot(x, y, label=run.label, markevery=marked, **style)
            # Leave the first steps out of the range: far above the rest, they would flatten everything else.
            later = [
                value for _, _, line in lines for point in line if point[0] >= 0.08 * line[-1][0] for value in point[1:]
            ]
            if later:
                low, high = min(later), max(later)
                axes.set_ylim(low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1))
            axes.xaxis.set_major_formatter(FuncFormatter(tokens_tick))
            axes.yaxis.set_major_formatter(FuncFormatter(tick))
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.set_xlim(0, 1.001 * max((line[-1][0] for _, _, line in lines), default=1))
        grid[-1].set_xlabel("tokens trained on")
        _label_line_ends(figure, grid, look, comparison)
        return to_png(figure)


def _label_line_ends(figure: Figure, grid: Any, look: Look, comparison: Comparison) -> None:
    """Write labels at the right ends of curves, moved apart where curves are close."""
    objectives = {run.label: run.facts.objective for run in comparison.runs}
    size, unit = 8.5, DPI / 72
    probe = [figure.text(0, 0, run.label, fontsize=size, fontweight="bold") for run in comparison.runs]
    room = (max(each.get_window_extent().width for each in probe) + 16 * unit) / figure.bbox.width
    for each in probe:
        each.remove()
    figure.set_layout_engine("constrained", rect=(0, 0, 1 - room, 1))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in grid:
        lines = list(axes.get_lines())
        to_pixels = axes.transData.transform
        frame = axes.get_window_extent()
        ends = [to_pixels((line.get_xdata()[-1], line.get_ydata()[-1])) for line in lines]
        heights = [min(max(end[1], frame.y0), frame.y1) for end in ends]
        gap = 12 * unit
        for line, end, height in zip(lines, ends, spread(heights, gap, frame.y0, frame.y1), strict=True):
            colour = look.colour(objectives[line.get_label()])
            left = frame.x1 + 12 * unit
            figure.text(
                left, height, line.get_label(), transform=None, va="center", fontsize=size, color=colour,
                fontweight="bold",
            )  # fmt: skip
            end_height = min(max(end[1], frame.y0), frame.y1)
            figure.add_artist(
                Line2D(
                    [end[0] + unit, left - 2 * unit], [end_height, height], transform=None, color=colour, linewidth=0.7
                )
            )


def training_loss(run: LoadedRun) -> list[Point]:
    """Cross-entropy against tokens, smoothed by a mean over the last few logged steps; skipped steps may have none."""
    losses = [(line.get("tokens"), line["ce"] if "ce" in line else line.get("loss")) for line in run.metrics]
    points = [(float(tokens), float(loss)) for tokens, loss in losses if tokens is not None and loss is not None]
    if not points:
        return []
    tokens, values = (np.array(each) for each in zip(*points, strict=True))
    width = max(3, len(points) // 40)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    starts = np.maximum(np.arange(len(values)) - width + 1, 0)
    stops = np.arange(len(values)) + 1
    smooth = ((sums[stops] - sums[starts]) / (stops - starts)).tolist()
    return list(zip(tokens.tolist(), smooth, smooth, smooth, strict=True))


def _measured(run: LoadedRun, name: str, by: str = "evaluation") -> list[Point]:
    found = []
    for line in run.metrics:
        # Figures that are not finite are stored as null.
        figures = {key: value for key, value in line.get(by, {}).items() if value is not None}
        if name in figures and "tokens" in line:
            value = float(figures[name])
            low, high = (float(figures.get(f"{name}_{end}", value)) for end in ("low", "high"))
            found.append((float(line["tokens"]), value, low, high))
    return found
