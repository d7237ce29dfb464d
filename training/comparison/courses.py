"""Misalignment along a course that several trials repeat, such as steps of finetuning: by groups of seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Generic, Protocol, TypeVar

from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from training.comparison.groups import Group
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Cell, Plot, Row
from training.comparison.style import NARROW, WIDE, Drawing, Look, add_legend, drawing, ends, new_figure, render, tick
from training.comparison.trade_off import misalignment_axis
from training.evaluation.format_figures import number
from training.runs.folder import RunFolder
from training.runs.report import Estimate, ScorerFacts, run_fingerprint
from training.statistics import NOT_NEGATIVE, mean_over_seeds

INTERVALS = (
    "Intervals are 95 %, over seeds of the training; with one seed over the trials, and with one trial over its "
    "samples."
)


class Report(Protocol):
    """What is needed of a stored report."""

    run: str
    column: str
    scorer: ScorerFacts
    trials: Any

    def misalignment(self) -> dict[int, list[float]]:
        """The mean misalignment by place of the course, one value per trial."""


R = TypeVar("R", bound=Report)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """A kind of reports.

    Attributes:
        name: of one of them, such as `test`.
        read: reads the report of a run; None if there is none.
        settings: what the course depends on, except seeds.
        of_single: the misalignment at a place of a report's only trial, with an interval over its samples.
    """

    name: str
    read: Callable[[RunFolder], R | None]
    settings: Callable[[R], Mapping[str, Any]]
    of_single: Callable[[R, int], Estimate | None]

    def why_not(self, run: LoadedRun, report: R) -> str | None:
        """Why a report cannot be shown beside the run's evaluation; None if it can."""
        if report.run != run_fingerprint(run.folder):
            return f"the run was trained since its {self.name}"
        if (report.column, report.scorer.fingerprint) != (run.report.column, run.report.scorer.fingerprint):
            return f"its {self.name} was judged by another scorer than this page"
        return None if report.trials else f"no trial of its {self.name} is finished"


@dataclass(frozen=True)
class Course(Generic[R]):
    """The reports of a group, all by the same settings.

    Attributes:
        label: name in figures.
        group: the group.
        reports: one per seed.
        kind: of the reports.
    """

    label: str
    group: Group
    reports: Sequence[R]
    kind: Kind[R]

    @property
    def misalignment(self) -> dict[int, Estimate]:
        """Mean misalignment by place, where every seed has it; for the interval see `INTERVALS`."""
        by_seed = [report.misalignment() for report in self.reports]
        found = {}
        for place in sorted(set.intersection(*(set(each) for each in by_seed))):
            values = [fmean(each[place]) for each in by_seed]
            if len(values) == 1 and len(by_seed[0][place]) > 1:
                values = by_seed[0][place]
            if len(values) > 1:
                estimate = Estimate.of(mean_over_seeds(values, NOT_NEGATIVE))
            else:
                estimate = self.kind.of_single(self.reports[0], place)
            if estimate is not None:
                found[place] = estimate
        return found


def read_courses(comparison: Comparison, kind: Kind[R]) -> tuple[list[Course[R]], list[str]]:
    """Read the reports of the runs; return the courses, and a sentence for each report that cannot be shown.

    Seeds of a group that were measured by different settings are courses of their own.
    """
    reports: dict[RunFolder, R] = {}
    not_shown = []
    for run in comparison.runs:
        report = kind.read(run.folder)
        reason = None if report is None else kind.why_not(run, report)
        if reason is not None:
            not_shown.append(f"{run.label}: {reason}.")
        elif report is not None:
            reports[run.folder] = report
    found = []
    for group in comparison.groups:
        by_settings: dict[str, list[LoadedRun]] = {}
        for run in group.runs if group.guidance is None else ():
            if run.folder in reports:
                by_settings.setdefault(repr(kind.settings(reports[run.folder])), []).append(run)
        for runs in by_settings.values():
            label = group.label if len(by_settings) == 1 else ", ".join(run.label for run in runs)
            found.append(Course(label, group, [reports[run.folder] for run in runs], kind))
    return [each for each in found if each.misalignment], not_shown


def differing(courses: Sequence[Course[R]]) -> list[str]:
    """A sentence for each setting in which the courses differ, with the values."""
    settings = [(each.label, each.kind.settings(each.reports[0])) for each in courses]
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


def places(courses: Sequence[Course[R]]) -> list[int]:
    """All places of the courses, in order."""
    return sorted({place for each in courses for place in each.misalignment})


def rows(courses: Sequence[Course[R]], shown: Sequence[int]) -> list[Row]:
    """A row per course with its misalignment at some places."""
    return [
        Row(each.label, [Cell.of(figures.get(place)) for place in shown], each.group.objective)
        for each in courses
        for figures in [each.misalignment]
    ]


def plot(
    comparison: Comparison, courses: Sequence[Course[R]], *, name: str, x_label: str, caption: str, doubling: bool
) -> Plot:
    """Draw misalignment along the courses.

    Args:
        comparison: names the axis.
        courses: what to draw.
        name: of the PNG file.
        x_label: of the places.
        caption: below the plot.
        doubling: whether places double from 1 on, after a 0.
    """
    figures = [(each, each.misalignment) for each in courses]
    return Plot(
        name,
        "",
        caption,
        "; ".join(
            f"{each.label}: " + ", ".join(f"{number(value.value, 3)} at {place}" for place, value in course.items())
            for each, course in figures
        ),
        lambda look: _draw(look, figures, x_label, misalignment_axis(comparison), doubling=doubling),
    )


def _draw(
    look: Look,
    courses: Sequence[tuple[Course[R], dict[int, Estimate]]],
    x_label: str,
    y_label: str,
    *,
    doubling: bool,
) -> Drawing:
    with drawing(look):
        figure = new_figure(NARROW if look.narrow else WIDE, 3.6 if look.narrow else 4.0)
        axes = figure.subplots()
        styles = look.lines([each.group.objective for each, _ in courses])
        for (each, course), style in zip(courses, styles, strict=True):
            below, above = zip(*(ends(value) for value in course.values()), strict=True)
            colour = look.colour(each.group.objective)
            axes.fill_between(list(course), below, above, color=colour, alpha=0.12, linewidth=0)
            axes.plot(list(course), [value.value for value in course.values()], label=each.label, **style)
        every = sorted({place for _, course in courses for place in course})
        if doubling:
            # They begin at 0, which a logarithm does not have.
            axes.set_xscale("symlog", base=2, linthresh=1)
        axes.xaxis.set_major_locator(FixedLocator(every[:: 1 + len(every) // (8 if look.narrow else 14)]))
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(tick))
        axes.set_ylim(bottom=min(0, *axes.get_ylim()))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        add_legend(figure, look)
        return render(figure, look)
