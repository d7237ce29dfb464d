"""Put a guidance sweep into words, for the terminal and the page."""

from training.evaluation.format_figures import interval, number
from training.runs.guidance_report import GuidanceReport, RuledOut

WHY_NOT: dict[RuledOut, str] = {
    "unscored": "no score",
    "repeats": "repeats itself",
    "perplexity": "too unlikely",
}


def recommendation(report: GuidanceReport) -> str:
    """The recommended scale and its figures, over the samples that did not take part in the choice."""
    chosen = None if report.recommended is None else report.of(report.recommended.scale)
    plain = report.of(1)
    if report.recommended is None or chosen is None or plain is None:
        return "No scale is recommended: none has a score."
    if chosen.scale == 1:
        return "Recommended: no guidance (g = 1)."
    difference = report.recommended.difference
    clear = difference is not None and difference.high is not None and difference.high < 0
    figures = [
        f"{number(each.misalignment.value, 3)} ({interval(each.misalignment, lambda value: number(value, 3))})"
        for each in (chosen.reporting, plain.reporting)
        if each.misalignment is not None
    ]
    return f"Recommended: g = {chosen.scale:g}, with a mean misalignment of {' against '.join(figures)} without " + (
        "guidance." if clear else "guidance; these samples do not clearly show a difference."
    )
