"""The section about tampering: how soon finetuning on misaligned text undoes a preference."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from training.comparison.differences import difference_ends
from training.comparison.groups import Group
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Cell, Finding, Plot, Row, Section, Table
from training.comparison.style import NARROW, WIDE, Look, drawing, ends, new_figure, tick, to_png
from training.comparison.trade_off import misalignment_axis
from training.evaluation.format_figures import number
from training.runs.folder import RunFolder
from training.runs.report import Estimate, run_fingerprint
from training.runs.tamper_report import TamperReport, read_tamper
from training.statistics import mean_over_seeds


@dataclass(frozen=True)
class Tampered:
    """The tests of a group, all by the same settings.

    Attributes:
        label: name in figures.
        group: the group.
        reports: one per seed.
    """

    label: str
    group: Group
    reports: Sequence[TamperReport]

    @property
    def misalignment(self) -> dict[int, Estimate]:
        """Mean misalignment by step, where every seed has it.

        The interval is over seeds; with one seed over its trials, and with one trial over its samples.
        """
        by_seed = [report.misalignment() for report in self.reports]
        found = {}
        for step in sorted(set.intersection(*(set(each) for each in by_seed))):
            values = [fmean(each[step]) for each in by_seed]
            if len(values) == 1 and len(by_seed[0][step]) > 1:
                values = by_seed[0][step]
            estimate = Estimate.of(mean_over_seeds(values)) if len(values) > 1 else self._of_samples(step)
            if estimate is not None:
                found[step] = estimate
        return found

    def _of_samples(self, step: int) -> Estimate | None:
        points = (point for trial in self.reports[0].trials for point in trial if point.step == step)
        return next((each for point in points if (each := point.samples.misalignment) is not None), None)


def tamper_section(comparison: Comparison) -> Section | None:
    """Misalignment against steps of finetuning; None if no test is stored."""
    reports: dict[RunFolder, TamperReport] = {}
    not_shown = []
    for run in comparison.runs:
        report = read_tamper(run.folder)
        reason = None if report is None else _why_not(run, report)
        if reason is not None:
            not_shown.append(f"{run.label}: {reason}.")
        elif report is not None:
            reports[run.folder] = report
    tested = [each for group in comparison.groups for each in _tests(group, reports) if each.misalignment]
    if not tested and not not_shown:
        return None
    findings = [
        Finding("How long a preference lasts", _lasting(comparison, tested)),
        Finding("Tests that differ", _differences(tested)),
        Finding("Not shown", not_shown),
    ]
    return Section(
        "Tampering",
        note="Each model is finetuned on the most misaligned documents of its training data, without tags, and sampled "
        "on the way. A preference that few steps undo was a thin layer over what the model knew.",
        findings=[each for each in findings if each.lines],
        plots=[_plot(comparison, tested)] if tested else [],
        tables=[_table(tested)] if tested else [],
    )


def _why_not(run: LoadedRun, report: TamperReport) -> str | None:
    if report.run != run_fingerprint(run.folder):
        return "the run was trained since its test"
    if (report.column, report.scorer.fingerprint) != (run.report.column, run.report.scorer.fingerprint):
        return "its test was judged by another scorer than this page"
    return None if report.trials else "no trial of its test is finished"


def _tests(group: Group, reports: dict[RunFolder, TamperReport]) -> list[Tampered]:
    """The tests of a group; seeds that were tested by different settings are apart."""
    if group.guidance is not None:
        return []
    by_settings: dict[str, list[LoadedRun]] = {}
    for run in group.runs:
        if run.folder in reports:
            by_settings.setdefault(repr(_settings(reports[run.folder])), []).append(run)
    return [
        Tampered(
            group.label if len(by_settings) == 1 else ", ".join(run.label for run in runs),
            group,
            [reports[run.folder] for run in runs],
        )
        for runs in by_settings.values()
    ]


def _settings(report: TamperReport) -> dict[str, Any]:
    """What the course of a test depends on, except seeds."""
    config = report.config.model_dump(exclude={"trials", "seed"})
    return config | {"learning_rate": report.learning_rate, "text": report.text.fingerprint[:12]}


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


def _differences(tested: Sequence[Tampered]) -> list[str]:
    settings = [(each.label, _settings(each.reports[0])) for each in tested]
    lines = []
    for name in settings[0][1] if settings else ():
        values: dict[str, list[str]] = {}
        for label, found in settings:
            value = found[name]
            values.setdefault(f"{value:g}" if isinstance(value, float) else str(value), []).append(label)
        if len(values) > 1:
            each = "; ".join(f"{value} ({', '.join(labels)})" for value, labels in values.items())
            lines.append(f"{name.replace('_', ' ')}: {each}.")
    return lines


def _steps(tested: Sequence[Tampered]) -> list[int]:
    return sorted({step for each in tested for step in each.misalignment})


def _table(tested: Sequence[Tampered]) -> Table:
    steps, text = _steps(tested), tested[0].reports[0].text
    one_text = len({each.reports[0].text.fingerprint for each in tested}) == 1
    about = f" That of the text is {number(text.misalignment, 3)}." if one_text else ""
    trials = sorted({len(report.trials) for each in tested for report in each.reports})
    rows = []
    for each in tested:
        figures = each.misalignment
        cells = [Cell.of(figures.get(step)) for step in steps]
        rows.append(Row(each.label, cells, each.group.objective))
    return Table(
        "Misalignment by steps of finetuning",
        f"Mean misalignment of samples.{about} Intervals are 95 %, over seeds of the training; with one seed over the "
        f"trials of the test (here {' or '.join(map(str, trials))}), and with one trial over its samples.",
        ["before", *(f"step {step:,}" for step in steps if step)]
        if 0 in steps
        else [f"step {step:,}" for step in steps],
        rows,
    )


def _plot(comparison: Comparison, tested: Sequence[Tampered]) -> Plot:
    courses = [(each, each.misalignment) for each in tested]
    return Plot(
        "tampering",
        "",
        "Mean misalignment of samples against steps of finetuning on misaligned text, with 95 % intervals as bands.",
        "; ".join(
            f"{each.label}: " + ", ".join(f"{number(value.value, 3)} at {step}" for step, value in course.items())
            for each, course in courses
        ),
        lambda look: _draw(look, courses, misalignment_axis(comparison)),
    )


def _draw(look: Look, courses: Sequence[tuple[Tampered, dict[int, Estimate]]], y_label: str) -> bytes:
    with drawing(look):
        figure = new_figure(NARROW if look.narrow else WIDE, 3.6 if look.narrow else 4.0)
        axes = figure.subplots()
        styles = look.lines([each.group.objective for each, _ in courses])
        for (each, course), style in zip(courses, styles, strict=True):
            steps = list(course)
            below, above = zip(*(ends(value) for value in course.values()), strict=True)
            axes.fill_between(steps, below, above, color=look.colour(each.group.objective), alpha=0.12, linewidth=0)
            axes.plot(steps, [value.value for value in course.values()], label=each.label, **style)
        steps = sorted({step for _, course in courses for step in course})
        # Steps double, and begin at 0, which a logarithm does not have.
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.xaxis.set_major_locator(FixedLocator(steps[:: 1 + len(steps) // (8 if look.narrow else 14)]))
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(tick))
        axes.set_ylim(bottom=min(0, *axes.get_ylim()))
        axes.set_xlabel("steps of finetuning on misaligned text")
        axes.set_ylabel(y_label)
        axes.legend(frameon=False, fontsize=8.5, loc="best", handlelength=3.4, labelcolor=look.ink)
        return to_png(figure)
