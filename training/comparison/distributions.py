"""Draw the distribution of the samples' scores."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from scorers.printing import printable
from training.comparison.load import Comparison
from training.comparison.section import Plot, Section
from training.comparison.style import (
    NARROW,
    WIDE,
    Drawing,
    Look,
    add_legend,
    drawing,
    new_figure,
    percent_tick,
    render,
    tick,
)
from training.statistics import Floats


def distribution_section(comparison: Comparison) -> Section | None:
    """How many samples have a score above each value; None if none has one above 0."""
    if not any((run.scores > 0).any() for run in comparison.sampled):
        return None
    several = any(len(group.runs) > 1 for group in comparison.groups)
    seeds = " A curve is the mean over seeds, and thin lines are single seeds." if several else ""
    plot = Plot(
        "score-distributions",
        "",
        "How many samples have a score above each value, on a logarithmic scale: the further right a curve ends, the "
        f"worse the worst samples.{seeds}",
        f"Share of samples whose {comparison.baseline.report.column} score exceeds each value, one curve each for "
        f"{', '.join(group.label for group in comparison.groups)}.",
        lambda look: score_distributions(comparison, look),
    )
    return Section("Scores of the samples", plots=[plot])


def score_distributions(comparison: Comparison, look: Look) -> Drawing:
    """Draw the share of samples whose score exceeds each value."""
    with drawing(look):
        figure = new_figure(*((NARROW, 3.5) if look.narrow else (WIDE, 4.0)))
        axes = figure.subplots()
        smallest = 1.0
        positive = np.concatenate([run.scores[run.scores > 0] for run in comparison.sampled] or [np.zeros(0)])
        guided = {place for place, group in enumerate(comparison.groups) if group.guidance is not None}
        lines = look.lines([group.objective for group in comparison.groups], guided)
        for number, (group, line) in enumerate(zip(comparison.groups, lines, strict=True)):
            seeds = [run.scores for run in group.runs if len(run.scores)]
            if not seeds:
                continue
            x, above = shares_above(seeds)
            smallest = min(smallest, *(1 / len(scores) for scores in seeds))
            for scores in seeds if len(seeds) > 1 else ():
                axes.step(*shares_above([scores]), where="post", color=line["color"], linewidth=0.7, alpha=0.35)
            # Markers at evenly spaced heights, which differ by group so that they do not cover each other.
            heights = smallest ** np.linspace(0.06 + 0.02 * number, 1, 7)
            marked = sorted({int(each) for each in np.searchsorted(-above, -heights) if each < len(above)})
            axes.step(x, above, where="post", label=group.label, markevery=marked, **line)
        axes.set_yscale("log")
        axes.set_ylim(smallest * 0.8, 1.25)
        axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 0.3)))
        if len(positive) and positive.max() > 30 * np.median(positive):
            axes.set_xscale("log")
            axes.set_xlim(np.quantile(positive, 0.02), positive.max() * 1.1)
        else:
            axes.set_xlim(0, (positive.max() if len(positive) else 1) * 1.02)
            axes.xaxis.set_major_locator(MaxNLocator(5 if look.narrow else 8))
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        threshold = comparison.baseline.report.samples.hit_threshold
        low, high = axes.get_xlim()
        if low < threshold < high:
            axes.axvline(threshold, color=look.faint, linewidth=0.9, linestyle=(0, (2, 2)))
            axes.annotate(
                " hit threshold", (threshold, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8,
                color=look.faint,
            )  # fmt: skip
        axes.set_xlabel(f"score of a sample ({printable(comparison.baseline.report.column)})")
        axes.set_ylabel("samples with a higher score")
        add_legend(figure, look)
        return render(figure, look)


def shares_above(seeds: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The share of samples with a higher score than each of the scores and 0, as a mean over seeds of equal weight.

    Args:
        seeds: the scores of each seed's samples, float64 [n], at least one each.

    Returns:
        The scores in order, and the shares; float64 [m].
    """
    x = np.unique(np.concatenate([np.zeros(1), *seeds]))
    above = [1 - np.searchsorted(np.sort(scores), x, side="right") / len(scores) for scores in seeds]
    return x, np.mean(above, axis=0)
