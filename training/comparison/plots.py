"""The figures of a comparison, with what stands beside them on the page."""

from collections.abc import Callable
from dataclasses import dataclass

from training.comparison.curves import training_curves, training_loss
from training.comparison.distributions import score_distributions
from training.comparison.intervals import estimate_panels, estimates
from training.comparison.load import Comparison
from training.comparison.style import Look
from training.comparison.trade_off import held_out_cost, same_tokenizer, trade_off
from training.evaluation.figures import number


@dataclass(frozen=True)
class Plot:
    """A figure that can be drawn in any look.

    Attributes:
        name: of its PNG file, without the ending.
        title, caption: beside it on the page.
        description: what it shows, for those who cannot see it.
        draw: from a look to PNG bytes.
    """

    name: str
    title: str
    caption: str
    description: str
    draw: Callable[[Look], bytes]


def plots(comparison: Comparison) -> list[Plot]:
    """The figures that the runs have numbers for, in the order of the page."""
    column, base = comparison.baseline.report.column, comparison.baseline.label
    found = []
    both = [run for run in comparison.sampled if run.report.held_out and run.report.samples.misalignment]
    if both:
        unit = "perplexity of a token" if same_tokenizer(comparison) else "bits per byte"
        guided = (
            " An outline is the same model with guided samples, which change nothing in what it predicts."
            if any(run.guidance is not None for run in both)
            else ""
        )
        found.append(
            Plot(
                "trade-off",
                "Alignment against capability",
                f"Mean misalignment of samples against held-out {unit}, with 95 % intervals over samples and over "
                "documents. All runs are measured on the same documents, so runs differ more surely along the "
                "horizontal axis than the intervals suggest; see the differences below." + guided
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
                f"Share of samples whose {column} score exceeds each value, one curve a run.",
                lambda look: score_distributions(comparison, look),
            )
        )
    if any(training_loss(run) for run in comparison.runs):
        found.append(
            Plot(
                "training-curves",
                "Training",
                "Cross-entropy of the tokens of each run's own stream, smoothed: with control tokens in it for "
                "conditional, without the filtered documents for filtering. Levels of different objectives are not "
                "comparable; held-out figures are. Bands, where there are any, are 95 % intervals.",
                "Training cross-entropy against tokens, one curve a run.",
                lambda look: training_curves(comparison, look),
            )
        )
    return found
