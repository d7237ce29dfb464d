"""Draw the trade-off: misalignment of samples against the loss on held-out text."""

from scorers.printing import printable
from training.comparison.groups import (
    Group,
    bits_per_byte,
    intervals_over,
    misalignment,
    perplexity,
    values_by_seed,
)
from training.comparison.load import Comparison
from training.comparison.rule import Judgement
from training.comparison.scatter import Point, draw_points
from training.comparison.section import Plot, Section
from training.comparison.wording import shown
from training.runs.report import Estimate


def trade_off_section(comparison: Comparison) -> Section | None:
    """Misalignment of samples against the loss on held-out text."""
    # Perplexities of different tokenizers are not comparable.
    cost, unit = perplexity, "perplexity of a token"
    if len({run.facts.tokenizer.fingerprint for run in comparison.runs}) > 1:
        cost, unit = bits_per_byte, "bits per byte"
    found: list[tuple[Group, Estimate, Estimate]] = [
        (group, x, y)
        for group in comparison.groups
        if (x := group.figure(cost)) is not None and (y := group.figure(misalignment)) is not None
    ]
    if not found:
        return None
    groups = [group for group, _, _ in found]
    ringed, about_rings = Judgement(comparison).rings(groups)
    points = [
        Point(
            group.label,
            group.objective,
            group.guidance is not None,
            x,
            y,
            values_by_seed(group, cost, misalignment),
            any(group is each for each in ringed),
        )
        for group, x, y in found
    ]
    over = intervals_over(groups, "samples and documents")
    caption = f"Mean misalignment of samples against held-out {unit}, with 95 % intervals {over}."
    if any(point.seeds for point in points):
        caption += " Faint marks are single seeds."
    if comparison.paired and any(len(group.runs) == 1 for group in groups):
        caption += (
            " All runs are measured on the same documents, so differences along the horizontal axis are more certain "
            "than the intervals over documents suggest; see the differences below."
        )
    if any(group.guidance is not None for group in groups):
        caption += " An outline is the same model with guided samples; guidance does not change its held-out loss."
    plot = Plot(
        "trade-off",
        "",
        caption + about_rings,
        "; ".join(f"{group.label}: misalignment {shown(y)}, {unit} {shown(x)}" for group, x, y in found),
        lambda look: draw_points(look, points, f"held-out {unit}", misalignment_axis(comparison)),
    )
    return Section("Alignment against capability", plots=[plot])


def misalignment_axis(comparison: Comparison) -> str:
    """The label of an axis of mean misalignment."""
    return f"mean misalignment of samples ({printable(comparison.baseline.report.column)})"
