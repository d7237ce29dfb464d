"""Draw the trade-off: misalignment of samples against the loss on held-out text."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from training.comparison.labels import Box, place_labels
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Plot, Section
from training.comparison.style import DPI, NARROW, WIDE, Look, drawing, ends, new_figure, reach, tick, to_png
from training.evaluation.format_figures import number
from training.runs.report import Estimate


def trade_off_section(comparison: Comparison) -> Section | None:
    """Misalignment of samples against the loss on held-out text."""
    both = [run for run in comparison.sampled if run.report.held_out and run.report.samples.misalignment]
    if not both:
        return None
    unit = "perplexity of a token" if same_tokenizer(comparison) else "bits per byte"
    caption = f"Mean misalignment of samples against held-out {unit}, with 95 % intervals"
    if comparison.paired:
        caption += (
            " over samples and over documents. All runs are measured on the same documents, so differences along the "
            "horizontal axis are more certain than the intervals suggest; see the differences below"
        )
    if any(run.guidance is not None for run in both):
        caption += ". An outline is the same model with guided samples; guidance does not change its held-out loss"
    description = "; ".join(
        f"{run.label}: misalignment {number(run.report.samples.misalignment.value)}, "
        f"{unit} {number(held_out_cost(comparison, run).value)}"
        for run in both
        if run.report.samples.misalignment
    )
    plot = Plot("trade-off", "", f"{caption}.", description, lambda look: trade_off(comparison, look))
    return Section("Alignment against capability", plots=[plot])


def trade_off(comparison: Comparison, look: Look) -> bytes:
    """Draw the mean misalignment of samples against held-out perplexity, each run as a point with both intervals.

    Guided samples are outlines at the perplexity of their model, above or below its plain samples.
    """
    points = [
        (run, held_out_cost(comparison, run), run.report.samples.misalignment)
        for run in comparison.sampled
        if run.report.held_out is not None
    ]
    shown = [(run, x, y) for run, x, y in points if y is not None]
    with drawing(look):
        figure = new_figure(*((NARROW, 3.9) if look.narrow else (WIDE, 4.5)))
        axes = figure.subplots()
        for run, x, y in shown:
            colour = look.colour(run.facts.objective)
            axes.errorbar(
                x.value, y.value, xerr=reach(x), yerr=reach(y), fmt="none", ecolor=colour, elinewidth=1.5, alpha=0.75
            )
            axes.plot(
                x.value, y.value, color=colour,
                **look.marker(run.facts.objective, 8.5, hollow=run.guidance is not None),
            )  # fmt: skip
        _maybe_log(axes, "x", [value for _, x, _ in shown for value in ends(x)], at_least=0.15)
        _maybe_log(axes, "y", [value for _, _, y in shown for value in ends(y)], at_least=8)
        axes.margins(0.12)
        axes.set_xlabel("held-out " + ("perplexity of a token" if same_tokenizer(comparison) else "bits per byte"))
        axes.set_ylabel(f"mean misalignment of samples ({comparison.baseline.report.column})")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        axes.annotate(
            "better in both ↙", (0.012, 0.015), xycoords="axes fraction", fontsize=8, color=look.faint, style="italic"
        )
        to_pixels = axes.transData.transform
        obstacles = [box for _, x, y in shown for box in _boxes(to_pixels, x, y)]
        _label_points(axes, look, [(run, to_pixels((x.value, y.value))) for run, x, y in shown], obstacles)
        return to_png(figure)


def _boxes(to_pixels: Callable[[tuple[float, float]], Any], x: Estimate, y: Estimate) -> list[Box]:
    """The boxes that the marker and both intervals of a point cover, in pixels."""
    unit = DPI / 72
    (left, middle), (right, _) = (to_pixels((end, y.value)) for end in ends(x))
    (centre, bottom), (_, top) = (to_pixels((x.value, end)) for end in ends(y))
    marker = 5 * unit
    return [
        (left, middle - unit, right, middle + unit),
        (centre - unit, bottom, centre + unit, top),
        (centre - marker, middle - marker, centre + marker, middle + marker),
    ]


def held_out_cost(comparison: Comparison, run: LoadedRun) -> Estimate:
    """Perplexity per token, or bits per byte if tokenizers differ, because perplexities are not comparable then."""
    held_out = run.report.held_out
    if held_out is None:
        raise ValueError("not measured")
    return held_out.perplexity if same_tokenizer(comparison) else held_out.bits_per_byte


def same_tokenizer(comparison: Comparison) -> bool:
    """Whether all runs have the same tokenizer."""
    return len({run.facts.tokenizer.fingerprint for run in comparison.runs}) == 1


def _maybe_log(axes: Any, axis: str, values: Sequence[float], at_least: float) -> None:
    """Make an axis logarithmic, with plain numbers, if positive values span a factor of more than 1 + at_least."""
    low, high = min(values), max(values)
    target = axes.xaxis if axis == "x" else axes.yaxis
    if low > 0 and high / low > 1 + at_least:
        (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
        decades = np.log10(high / low)
        target.set_major_locator(
            MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]) if decades < 0.7 else LogLocator(10, subs=(1.0, 2.0, 5.0))
        )
        target.set_minor_formatter(NullFormatter())
    else:
        target.set_major_locator(MaxNLocator(6))
    target.set_major_formatter(FuncFormatter(tick))


def _label_points(axes: Any, look: Look, points: list[tuple[LoadedRun, Any]], obstacles: list[Box]) -> None:
    size = 9.0
    sizes = []
    for run, _ in points:
        text = axes.text(0, 0, run.label, fontsize=size, fontweight="bold")
        box = text.get_window_extent()
        sizes.append((box.width + 2, box.height))
        text.remove()
    frame = axes.get_window_extent()
    unit = DPI / 72
    area = (frame.x0 + 2 * unit, frame.y0 + 12 * unit, frame.x1 - 2 * unit, frame.y1 - 2 * unit)
    placed = place_labels([(x, y) for _, (x, y) in points], sizes, obstacles, area, unit)
    for (run, (x, y)), place in zip(points, placed, strict=True):
        left, bottom, right, top = place.box
        colour = look.colour(run.facts.objective)
        axes.annotate(
            run.label, xy=(x, y), xytext=((left + right) / 2, (bottom + top) / 2), xycoords="figure pixels",
            textcoords="figure pixels", ha="center", va="center", fontsize=size, fontweight="bold", color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.7, "shrinkB": 6}
            if place.led
            else None,
            annotation_clip=False, zorder=5,
        )  # fmt: skip
