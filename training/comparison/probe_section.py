"""The section about linear probes: how readable the preference is in the hidden states of each run."""

from collections.abc import Callable

from training.comparison.groups import Group
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Cell, Row, Section, Table
from training.evaluation.probing.wording import MEANING
from training.runs.probe_report import ProbeFigures, ProbeReport, read_probe
from training.runs.report import Estimate, run_fingerprint
from training.statistics import SHARE, UNBOUNDED, Bounds


def probe_section(comparison: Comparison) -> Section | None:
    """The figures of `phf evaluate --probe`; None without any."""
    groups = [group for group in comparison.groups if group.guidance is None]
    reports = {id(run): read_probe(run.folder) for group in groups for run in group.runs}
    if not any(reports.values()):
        return None
    fresh: dict[int, ProbeReport] = {}
    notes, stale = [MEANING], []
    for run in (run for group in groups for run in group.runs):
        report = reports[id(run)]
        if report is not None and report.run == run_fingerprint(run.folder):
            fresh[id(run)] = report
        elif report is not None:
            stale.append(run.label)
    if stale:
        notes.append(f"Probes of an older state are left out: {', '.join(stale)}. Measure them again.")
    if len({each.sentences.fingerprint for each in fresh.values() if each.sentences is not None}) > 1:
        notes.append("Not all runs were probed on the same sentences, so their figures are not quite comparable.")
    notes += [
        f"{run.label} cannot be probed: {each.not_measured}"
        for group in groups
        for run in group.runs
        if (each := fresh.get(id(run))) is not None and each.not_measured
    ]
    measured = [group for group in groups if any(_figures(fresh, run) for run in group.runs)]
    tables = [_table(measured, fresh)] if measured else []
    return Section("Preference in the hidden states", note=" ".join(notes), tables=tables)


def _figures(reports: dict[int, ProbeReport], run: LoadedRun) -> ProbeFigures | None:
    report = reports.get(id(run))
    return None if report is None else report.figures


def _table(groups: list[Group], reports: dict[int, ProbeReport]) -> Table:
    columns: dict[str, tuple[Callable[[ProbeFigures], Estimate], Bounds]] = {
        "AUC, best layer": (lambda figures: figures.best, SHARE),
        "AUC, embeddings": (lambda figures: figures.layers[0].auc, SHARE),
        "AUC, last layer": (lambda figures: figures.layers[-1].auc, SHARE),
        "LogME, last layer": (lambda figures: Estimate(value=figures.layers[-1].logme), UNBOUNDED),
    }

    def cell(group: Group, of: Callable[[ProbeFigures], Estimate], bounds: Bounds) -> Cell:
        def figure(run: LoadedRun) -> Estimate | None:
            figures = _figures(reports, run)
            return None if figures is None else of(figures)

        return Cell.of(group.figure(figure, bounds))

    return Table(
        "",
        "The best layer is chosen on other documents than its AUC is measured on. LogME is a log evidence in nats per "
        "sentence, higher where the preference is more readable. 95 % intervals are over documents or, for several "
        "seeds, over these.",
        list(columns),
        [Row(group.label, [cell(group, *each) for each in columns.values()], group.objective) for group in groups],
    )
