"""The section about tampering: how soon finetuning on misaligned text undoes a preference."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.comparison.courses import INTERVALS, Course, Kind, differing, places, plot, read_courses, rows
from training.comparison.differences import difference_ends
from training.comparison.load import Comparison
from training.comparison.section import Finding, Section, Table
from training.evaluation.format_figures import number
from training.runs.report import Estimate
from training.runs.tamper_report import TamperReport, read_tamper

Tampered = Course[TamperReport]


def tamper_section(comparison: Comparison) -> Section | None:
    """Misalignment against steps of finetuning; None if no test is stored."""
    tested, not_shown = read_courses(comparison, Kind("test", read_tamper, _settings, _of_single))
    if not tested and not not_shown:
        return None
    findings = [
        Finding("How long a preference lasts", _lasting(comparison, tested)),
        Finding("Tests that differ", differing(tested)),
        Finding("Not shown", not_shown),
    ]
    drawn = plot(
        comparison,
        tested,
        name="tampering",
        x_label="steps of finetuning on misaligned text",
        caption="Mean misalignment of samples against steps of finetuning on misaligned text, with 95 % intervals as "
        "bands.",
        doubling=True,
    )
    return Section(
        "Tampering",
        note="Each model is finetuned on the most misaligned documents of its training data, without tags, and sampled "
        "on the way. A preference that few steps undo was a thin layer over what the model knew.",
        findings=[each for each in findings if each.lines],
        plots=[drawn] if tested else [],
        tables=[_table(tested)] if tested else [],
    )


def _settings(report: TamperReport) -> Mapping[str, Any]:
    config = report.config.model_dump(exclude={"trials", "seed"})
    return config | {"learning_rate": report.learning_rate, "text": report.text.fingerprint[:12]}


def _of_single(report: TamperReport, step: int) -> Estimate | None:
    points = (point for trial in report.trials for point in trial if point.step == step)
    return next((each for point in points if (each := point.samples.misalignment) is not None), None)


def _lasting(comparison: Comparison, tested: Sequence[Tampered]) -> list[str]:
    """Through which step each group is clearly less misaligned than the baseline before any finetuning."""
    base = next((each.misalignment.get(0) for each in tested if each.group is comparison.base), None)
    lines = []
    for each in tested:
        if base is None or each.group is comparison.base:
            continue
        figures = each.misalignment
        steps = list(figures)
        lower = [difference_ends(figures[step], base)[1] < 0 for step in steps]
        if not lower[0] or steps[0] != 0:
            continue
        first = lower.index(False) if not all(lower) else len(lower)
        than = f"clearly less misaligned than {comparison.base.label} before any finetuning"
        if first == len(lower):
            lines.append(f"{each.label} stays {than}, through all {steps[-1]:,} steps.")
        elif first == 1:
            lines.append(f"{each.label} is {than} at first, but no longer at step {steps[1]:,}.")
        else:
            lines.append(
                f"{each.label} stays {than} through step {steps[first - 1]:,}, but not at step {steps[first]:,}."
            )
    return lines


def _table(tested: Sequence[Tampered]) -> Table:
    steps, text = places(tested), tested[0].reports[0].text
    one_text = len({each.reports[0].text.fingerprint for each in tested}) == 1
    about = f" That of the text is {number(text.misalignment, 3)}." if one_text else ""
    return Table(
        "Misalignment by steps of finetuning",
        f"Mean misalignment of samples.{about} {INTERVALS}",
        ["before" if step == 0 else f"step {step:,}" for step in steps],
        rows(tested, steps),
    )
