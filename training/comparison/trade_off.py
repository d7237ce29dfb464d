"""Draw the trade-off: misalignment of samples against the loss on held-out text."""

from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.scatter import Point, draw_points
from training.comparison.section import Plot, Section
from training.comparison.style import Look
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
        Point(run.label, run.objective, run.guidance is not None, held_out_cost(comparison, run), misalignment)
        for run in comparison.sampled
        if run.report.held_out is not None and (misalignment := run.report.samples.misalignment) is not None
    ]
    unit = "perplexity of a token" if same_tokenizer(comparison) else "bits per byte"
    return draw_points(look, points, f"held-out {unit}", misalignment_axis(comparison))


def misalignment_axis(comparison: Comparison) -> str:
    """The label of an axis of mean misalignment."""
    return f"mean misalignment of samples ({comparison.baseline.report.column})"


def held_out_cost(comparison: Comparison, run: LoadedRun) -> Estimate:
    """Perplexity per token, or bits per byte if tokenizers differ, because perplexities are not comparable then."""
    held_out = run.report.held_out
    if held_out is None:
        raise ValueError("not measured")
    return held_out.perplexity if same_tokenizer(comparison) else held_out.bits_per_byte


def same_tokenizer(comparison: Comparison) -> bool:
    """Whether all runs have the same tokenizer."""
    return len({run.facts.tokenizer.fingerprint for run in comparison.runs}) == 1
