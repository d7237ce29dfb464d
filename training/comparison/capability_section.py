"""The section about capability: tasks of the lm-evaluation-harness, and classification after finetuning."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from scorers.printing import printable
from training.comparison.groups import Group
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Cell, Row, Section, Table
from training.runs.classification_report import CLASSIFICATION, ClassificationReport
from training.runs.report import Estimate, read_stored_reports, run_fingerprint
from training.runs.task_report import TASKS, TaskFacts, TaskFigure, TaskReport
from training.statistics import NOT_NEGATIVE, SHARE, UNBOUNDED, Bounds

_LONGEST = 60  # characters of a heading
# Of metrics of the harness; those of others are not known.
_BOUNDS = dict.fromkeys(("acc", "acc_norm", "exact_match"), SHARE) | dict.fromkeys(
    ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"), NOT_NEGATIVE
)


@dataclass(frozen=True)
class _Column:
    """A figure of several runs: whatever has equal keys was measured in the same way."""

    key: str
    heading: str
    is_share: bool
    bounds: Bounds = UNBOUNDED


def capability_section(comparison: Comparison) -> Section | None:
    """The figures of `phf evaluate --tasks` and `phf classify`; None without any."""
    groups = [group for group in comparison.groups if group.guidance is None]
    stale: list[str] = []
    tasks = _table(groups, lambda run: _tasks(run, stale), "Tasks", "Tasks of the lm-evaluation-harness.")
    classes = _table(
        groups,
        lambda run: _classifications(run, stale),
        "Classification after finetuning",
        "The whole model was finetuned on labelled texts, and tested on others; intervals are over its trials.",
    )
    tables = [table for table in (tasks, classes) if table is not None]
    if not tables and not stale:
        return None
    note = "What the models can do. Several seeds have their mean, with an interval over seeds."
    if stale:
        note += f" Figures of an older state are left out: {', '.join(dict.fromkeys(stale))}. Measure them again."
    return Section("Capability", note=note, tables=tables)


def _table(
    groups: Sequence[Group], figures: Callable[[LoadedRun], dict[_Column, Estimate]], title: str, note: str
) -> Table | None:
    found = {id(run): figures(run) for group in groups for run in group.runs}
    columns = list(dict.fromkeys(column for each in found.values() for column in each))
    if not columns:
        return None
    headings, taken = [], dict[str, int]()
    for column in columns:
        taken[column.heading] = taken.get(column.heading, 0) + 1
        again = taken[column.heading]
        headings.append(column.heading if again == 1 else f"{column.heading} (other settings, {again})")

    def cell(group: Group, column: _Column) -> Cell:
        figure = group.figure(lambda run: found[id(run)].get(column), column.bounds)
        return Cell.of(figure, share=column.is_share)

    rows = [Row(group.label, [cell(group, column) for column in columns], group.objective) for group in groups]
    return Table(title, note, headings, rows)


def _tasks(run: LoadedRun, stale: list[str]) -> dict[_Column, Estimate]:
    found = {}
    for report in read_stored_reports(TaskReport, run.folder.evaluation / TASKS, run.folder):
        if report.run != run_fingerprint(run.folder):
            stale.append(f"{run.label} on {_shown(report.request)}")
            continue
        for task, figure in _figures(report):
            shots = f", {task.num_fewshot}-shot" if task.num_fewshot else ""
            heading = f"{_shown(task.name)}: {_shown(figure.metric)}{shots}"
            key = f"{report.settings} {task.name} {figure.metric} {figure.filter}"
            found[_Column(key, heading, False, _BOUNDS.get(figure.metric, UNBOUNDED))] = figure.estimate
    return found


def _figures(report: TaskReport) -> Iterator[tuple[TaskFacts, TaskFigure]]:
    return ((task, figure) for task in report.tasks for figure in task.figures)


def _classifications(run: LoadedRun, stale: list[str]) -> dict[_Column, Estimate]:
    found = {}
    for report in read_stored_reports(ClassificationReport, run.folder.evaluation / CLASSIFICATION, run.folder):
        if report.run != run_fingerprint(run.folder):
            stale.append(f"{run.label} on {_shown(report.name)}")
            continue
        if report.accuracy is None or report.macro_f1 is None:
            continue
        key = f"{report.texts} {report.config.model_dump_json(exclude={'trials'})}"
        name = f"{_shown(report.name)}, {report.test:,} texts"
        found[_Column(f"{key} accuracy", f"{name}: accuracy", True, SHARE)] = report.accuracy
        found[_Column(f"{key} f1", f"{name}: macro F1", False, SHARE)] = report.macro_f1
    return found


def _shown(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
