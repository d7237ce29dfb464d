"""The plots of a comparison with their captions: estimates with intervals, and the distribution of scores."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from training.comparison.curves import training_curves, training_loss
from training.comparison.findings import same_hit_rate
from training.comparison.load import Comparison, LoadedRun
from training.comparison.style import NARROW, WIDE, Look, drawing, ends, new_figure, percent_tick, reach, tick, to_png
from training.comparison.trade_off import held_out_cost, same_tokenizer, trade_off
from training.evaluation.format_figures import number
from training.runs.report import MAXIMUM_OF, Estimate


def score_distributions(comparison: Comparison, look: Look) -> bytes:
    """Draw the share of samples whose score exceeds each value."""
    with drawing(look):
        figure = new_figure(*((NARROW, 3.5) if look.narrow else (WIDE, 4.0)))
        axes = figure.subplots()
        smallest = 1.0
        sampled = comparison.sampled
        positive = np.concatenate([run.scores[run.scores > 0] for run in sampled] or [np.zeros(0)])
        guided = {place for place, run in enumerate(sampled) if run.guidance is not None}
        lines = look.lines([run.facts.objective for run in sampled], guided)
        for number, (run, line) in enumerate(zip(sampled, lines, strict=True)):
            if not len(run.scores):
                continue
            x, counts = np.unique(run.scores, return_counts=True)
            above = 1 - np.cumsum(counts) / len(run.scores)
            x, above = np.concatenate([[0.0], x]), np.concatenate([[1.0], above])
            smallest = min(smallest, 1 / len(run.scores))
            # Markers at evenly spaced heights, which differ by run so that they do not cover each other.
            heights = smallest ** np.linspace(0.06 + 0.02 * number, 1, 7)
            marked = sorted({int(each) for each in np.searchsorted(-above, -heights) if each < len(above)})
            axes.step(x, np.maximum(above, 0), where="post", label=run.label, markevery=marked, **line)
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
        axes.set_xlabel(f"score of a sample ({comparison.baseline.report.column})")
        axes.set_ylabel("samples with a higher score")
        axes.legend(
            frameon=False, fontsize=8.5, loc="upper right", ncols=1 if look.narrow else 2, handlelength=3.4,
            labelcolor=look.ink,
        )  # fmt: skip
        return to_png(figure)


Panel = tuple[str, Callable[[LoadedRun], Estimate | None], bool]  # title, figure of a run, whether it is a share


def estimates(comparison: Comparison, look: Look) -> bytes:
    """Draw each figure of each run with its interval, beside the baseline's."""
    panels = estimate_panels(comparison)
    runs = comparison.sampled[::-1]
    rows, columns = (-(-len(panels) // 2), 2) if not look.narrow else (len(panels), 1)
    height = 0.62 + 0.25 * len(runs)
    with drawing(look):
        figure = new_figure(NARROW if look.narrow else WIDE, rows * height + 0.15)
        figure.set_layout_engine("constrained", h_pad=0.08)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, of, share) in zip(grid.flat, panels, strict=False):
            axes.set_title(title)
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            base = of(comparison.baseline)
            if base is not None and len(runs) > 1:
                axes.axvspan(*ends(base), color=look.grid, zorder=0)
                axes.axvline(base.value, color=look.faint, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            for place, run in enumerate(runs):
                estimate = of(run)
                if estimate is None:
                    continue
                colour = look.colour(run.facts.objective)
                axes.errorbar(estimate.value, place, xerr=reach(estimate), fmt="none", ecolor=colour, elinewidth=1.8)
                axes.plot(
                    estimate.value, place, color=colour,
                    **look.marker(run.facts.objective, 6.5, hollow=run.guidance is not None),
                )  # fmt: skip
            axes.set_ylim(-0.6, len(runs) - 0.4)
            axes.set_yticks(range(len(runs)), [run.label for run in runs])
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(percent_tick if share else tick))
        return to_png(figure)


def estimate_panels(comparison: Comparison) -> list[Panel]:
    """The figures that at least one run has."""
    column = comparison.baseline.report.column
    panels: list[Panel] = [
        (f"mean misalignment ({column})", lambda run: run.report.samples.misalignment, False),
        (f"expected maximum of {MAXIMUM_OF}", lambda run: run.report.samples.expected_maximum, False),
        ("hit rate", lambda run: run.report.samples.hit_rate, True),
        (
            "held-out bits per byte",
            lambda run: run.report.held_out.bits_per_byte if run.report.held_out and run.guidance is None else None,
            False,
        ),
    ]
    if same_hit_rate(comparison) is not None:
        panels = [panel for panel in panels if panel[0] != "hit rate"]
    return [panel for panel in panels if any(panel[1](run) for run in comparison.runs)]


@dataclass(frozen=True)
class Plot:
    """A plot that can be drawn in any look.

    Attributes:
        name: name of its PNG file, without the extension.
        title, caption: text on the page.
        description: alternative text.
        draw: draws it in a look; returns PNG bytes.
    """

    name: str
    title: str
    caption: str
    description: str
    draw: Callable[[Look], bytes]


def plots(comparison: Comparison) -> list[Plot]:
    """The plots for which the runs have figures, in the order of the page."""
    column, base = comparison.baseline.report.column, comparison.baseline.label
    found = []
    both = [run for run in comparison.sampled if run.report.held_out and run.report.samples.misalignment]
    if both:
        unit = "perplexity of a token" if same_tokenizer(comparison) else "bits per byte"
        guided = (
            " An outline is the same model with guided samples; guidance does not change its held-out loss."
            if any(run.guidance is not None for run in both)
            else ""
        )
        found.append(
            Plot(
                "trade-off",
                "Alignment against capability",
                f"Mean misalignment of samples against held-out {unit}, with 95 % intervals over samples and over "
                "documents. All runs are measured on the same documents, so differences along the horizontal axis are "
                "more certain than the intervals suggest; see the differences below." + guided
                if comparison.paired
                else f"Mean misalignment of samples against held-out {unit}, with 95 % intervals.{guided}",
                "; ".join(
                    f"{run.label}: misalignment {number(run.report.samples.misalignment.value)}, "
                    f"{unit} {number(held_out_cost(comparison, run).value)}"
                    for run in both
                    if run.report.samples.misalignment
                ),
                lambda look: trade_off(comparison, look),
            )
        )
    if estimate_panels(comparison):
        found.append(
            Plot(
                "estimates",
                "Every figure with its interval",
                f"Bars are 95 % intervals; the band is that of {base}."
                if len(comparison.runs) > 1
                else "Bars are 95 % intervals.",
                "The figures of the table below, as points with intervals.",
                lambda look: estimates(comparison, look),
            )
        )
    if any(len(run.scores) for run in comparison.runs):
        found.append(
            Plot(
                "score-distributions",
                "Scores of the samples",
                "How many samples have a score above each value, on a logarithmic scale: the further right a curve "
                "ends, the worse the worst samples.",
                f"Share of samples whose {column} score exceeds each value, one curve per run.",
                lambda look: score_distributions(comparison, look),
            )
        )
    if any(training_loss(run) for run in comparison.runs):
        found.append(
            Plot(
                "training-curves",
                "Training",
                "Smoothed cross-entropy of each run's own stream: with control tokens for conditional, without the "
                "filtered documents for filtering. Levels of different objectives are not comparable; held-out figures "
                "are. Bands, if any, are 95 % intervals.",
                "Training cross-entropy against tokens, one curve per run.",
                lambda look: training_curves(comparison, look),
            )
        )
    return found
