"""The section about scenarios: the runs on the same prompts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scorers.amounts import format_count
from scorers.printing import printable
from training import statistics
from training.comparison.differences import difference
from training.comparison.groups import Group
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import NONE, Cell, Row, Section, Table
from training.comparison.tables import SampleColumn, sample_columns
from training.comparison.wording import listed
from training.runs.report import MAXIMUM_OF, Estimate, SampleFacts, run_fingerprint
from training.runs.scenario_report import (
    NO_PROMPTS,
    ScenarioReport,
    read_prompts_table,
    read_scenario,
    scenario_names,
)
from training.statistics import NOT_NEGATIVE, SHARE, Bounds


@dataclass(frozen=True)
class _Entry:
    """A group's reports on one scenario, one per run, all with the same guidance."""

    group: Group
    guidance: float
    reports: dict[int, ScenarioReport]  # by the id of the run

    @property
    def label(self) -> str:
        return self.group.label if self.guidance == 1 else f"{self.group.label} (g = {self.guidance:g})"

    def samples(self, run: LoadedRun) -> SampleFacts | None:
        """The figures of a run of the group; None if it was not evaluated on the scenario."""
        report = self.reports.get(id(run))
        return None if report is None else report.samples

    def misalignment(self, run: LoadedRun) -> Estimate | None:
        """Mean misalignment of a run's samples."""
        samples = self.samples(run)
        return None if samples is None else samples.misalignment


def scenario_section(comparison: Comparison) -> Section | None:
    """The scenarios that runs were evaluated on with `phf evaluate --scenario`; None without any."""
    plain = [group for group in comparison.groups if group.guidance is None]
    stale: list[str] = []
    scenarios: dict[str, list[_Entry]] = {}
    names: dict[str, dict[str, None]] = {}
    for group in plain:
        found: dict[tuple[str, float], dict[int, ScenarioReport]] = {}
        for run in group.runs:
            for report in _reports(run, stale):
                key = _key(report)
                found.setdefault((key, report.scenario.guidance), {})[id(run)] = report
                names.setdefault(key, {})[report.scenario.name] = None
        for (key, guidance), reports in found.items():
            scenarios.setdefault(key, []).append(_Entry(group, guidance, reports))
    if not scenarios and not stale:
        return None
    note = (
        "Every figure is a mean over prompts, with a 95 % interval over prompts; several seeds have their mean, with "
        "an interval over seeds."
    )
    if stale:
        note += f" Figures of an older state are left out: {', '.join(dict.fromkeys(stale))}. Evaluate them again."
    tables = []
    for key, entries in scenarios.items():
        title = listed([printable(each) for each in names[key]])
        tables.append(_table(title, entries, comparison.base))
        slices = _slices(title, entries)
        tables += [slices] if slices is not None else []
    return Section("Scenarios", note=note, tables=tables)


def _reports(run: LoadedRun, stale: list[str]) -> list[ScenarioReport]:
    found = []
    for name in scenario_names(run.folder):
        report = read_scenario(run.folder, name)
        if report is None or (report.column, report.scorer.fingerprint) != (
            run.report.column,
            run.report.scorer.fingerprint,
        ):
            continue
        if report.run != run_fingerprint(run.folder):
            stale.append(f"{run.label} on {printable(name)}")
            continue
        found.append(report)
    return found


def _key(report: ScenarioReport) -> str:
    """What must be equal for figures to be comparable: the settings but guidance, and the prompts."""
    settings = report.scenario.model_dump(mode="json", exclude={"name", "prompts", "field", "guidance"})
    return json.dumps([settings, report.prompts.fingerprint, report.samples.hit_threshold])


def _table(title: str, entries: Sequence[_Entry], base: Group) -> Table:
    report = next(iter(entries[0].reports.values()))
    scenario, prompts = report.scenario, report.prompts
    reference = next((each for each in entries if each.group is base and each.guidance == 1), None)
    note = f"{format_count(scenario.continuations, 'sample')}, {_control(report)}."
    if prompts.source != NO_PROMPTS:
        samples = f"{format_count(scenario.continuations, 'sample')} each"
        note = (
            f"{format_count(prompts.number, 'prompt')} of {printable(prompts.source)}, {samples}, {_control(report)}."
        )
    if prompts.overlap is not None and prompts.overlap.prompts:
        overlap = prompts.overlap
        note += (
            f" {overlap.overlapping:,} of {format_count(overlap.prompts, 'prompt')} of at least {overlap.tokens} "
            "tokens share a run of so many with the training text."
        )
    samplers = dict.fromkeys(each.sampler for entry in entries for each in entry.reports.values() if each.sampler)
    if samplers:
        note += f" Samples drawn by {listed([printable(each) for each in samplers])}."
    columns = ["misalignment, mean", f"expected maximum of {MAXIMUM_OF}", "hit rate", "length in tokens"]
    more = sample_columns(each.samples for entry in entries for each in entry.reports.values())
    columns += [column.heading for column in more]
    note += "".join(f" {column.note}" for column in more)
    if reference is not None and len(entries) > 1:
        columns.append(f"misalignment, difference from {reference.label} on the same prompts")
    rows = [
        Row(each.label, _cells(each, more, columns, reference), each.group.objective, each.guidance != 1)
        for each in entries
    ]
    return Table(title, note, columns, rows)


def _control(report: ScenarioReport) -> str:
    position = report.scenario.control
    return "no control token" if position == "none" else f"control token {position} the prompt"


def _cells(entry: _Entry, more: Sequence[SampleColumn], columns: Sequence[str], reference: _Entry | None) -> list[Cell]:
    def of(figure: Callable[[SampleFacts], Estimate | None], bounds: Bounds = NOT_NEGATIVE) -> Estimate | None:
        def of_run(run: LoadedRun) -> Estimate | None:
            samples = entry.samples(run)
            return None if samples is None else figure(samples)

        return entry.group.figure(of_run, bounds)

    cells = [
        Cell.of(of(lambda samples: samples.misalignment)),
        Cell.of(of(lambda samples: samples.expected_maximum)),
        Cell.of(of(lambda samples: samples.hit_rate, SHARE), share=True),
        Cell.of(of(lambda samples: samples.tokens)),
        *(column.cell(of(column.figure, SHARE)) for column in more),
    ]
    if len(columns) > len(cells):
        cells.append(Cell(NONE) if reference is None or reference is entry else Cell.of(_difference(entry, reference)))
    return cells


def _difference(entry: _Entry, reference: _Entry) -> Estimate | None:
    """Mean misalignment of an entry minus that of the reference, of single seeds prompt by prompt."""

    def by_prompt() -> statistics.Estimate | None:
        mine, theirs = (_scores(each) for each in (entry, reference))
        both = sorted(mine.keys() & theirs.keys())
        return statistics.paired_difference([mine[each] - theirs[each] for each in both])

    found = difference(entry.group, reference.group, entry.misalignment, by_prompt, of_other=reference.misalignment)
    return None if found is None else Estimate.of(found.estimate)


def _scores(entry: _Entry) -> dict[str, float]:
    """The mean score of each prompt's samples, by the prompt's fingerprint, of a group of one seed."""
    run = entry.group.runs[0]
    report = entry.reports[id(run)]
    table = read_prompts_table(run.folder, report)
    scores = table["score"].to_numpy()
    # Equal prompts of a file have equal fingerprints: number them.
    found: dict[str, float] = {}
    seen: dict[str, int] = {}
    for fingerprint, score in zip(table["fingerprint"].to_pylist(), scores.tolist(), strict=True):
        seen[fingerprint] = seen.get(fingerprint, 0) + 1
        if score is not None and not np.isnan(score):
            found[f"{fingerprint} {seen[fingerprint]}"] = score
    return found


def _slices(title: str, entries: Sequence[_Entry]) -> Table | None:
    report = next(iter(entries[0].reports.values()))
    names = [each.name for each in report.slices]
    if not names:
        return None

    def figure(entry: _Entry, name: str) -> Estimate | None:
        def of(run: LoadedRun) -> Estimate | None:
            found = entry.reports.get(id(run))
            return (
                next((each.samples.misalignment for each in found.slices if each.name == name), None) if found else None
            )

        return entry.group.figure(of, NOT_NEGATIVE)

    return Table(
        f"{title}, by part",
        "Mean misalignment after the most misaligned tenth of the prompts and after the rest.",
        [f"{each.name}, {format_count(each.prompts, 'prompt')}" for each in report.slices],
        [
            Row(each.label, [Cell.of(figure(each, name)) for name in names], each.group.objective, each.guidance != 1)
            for each in entries
        ],
    )
