"""The section about references: how far runs moved from one (KL), and how likely their samples are under it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from scorers.amounts import format_count
from scorers.printing import printable
from training.comparison.groups import Group, misalignment, values_by_seed
from training.comparison.load import Comparison
from training.comparison.rule import Judgement
from training.comparison.run import LoadedRun
from training.comparison.scatter import Point, draw_points
from training.comparison.section import Cell, Finding, Plot, Row, Section, Table
from training.comparison.trade_off import misalignment_axis
from training.comparison.wording import listed, shown
from training.runs.folder import RunFolder
from training.runs.reference_report import (
    ReferenceReport,
    UnderReferenceFacts,
    read_reference_reports,
    samples_digest,
)
from training.runs.report import Estimate, run_fingerprint
from training.runs.tables import GUIDED_NAME, SAMPLES_NAME, SAMPLES_SCHEMA, read_table
from training.statistics import NOT_NEGATIVE

_LONGEST_NAME = 64


@dataclass(frozen=True)
class State:
    """A run of the page as it is now.

    Attributes:
        run: the run, plain.
        fingerprint: of its facts.
    """

    run: LoadedRun
    fingerprint: str

    @cached_property
    def samples(self) -> dict[str, str]:
        """Digests of the samples that the page is about, by the names of `ReferenceReport.under_reference`."""
        report = self.run.report
        sets = {"samples": (SAMPLES_NAME, report.samples)}
        if report.guided is not None:
            sets["guided"] = (GUIDED_NAME, report.guided.samples)
        found = {}
        for name, (file, facts) in sets.items():
            table = read_table(self.run.evaluation / file, SAMPLES_SCHEMA, self.run.folder, facts.number)
            found[name] = samples_digest(table["ids"].to_pylist(), table["ended"].to_pylist())
        return found


@dataclass
class Reference:
    """A reference, with what was measured against it by the same settings.

    Attributes:
        label: its name.
        reports: by the folders of the runs, those of their present states.
        own: folders of runs that are the reference itself, whose KL is 0.
        states: of all runs, by folder.
    """

    label: str
    reports: dict[RunFolder, ReferenceReport]
    own: set[RunFolder]
    states: dict[RunFolder, State]

    def kl(self, run: LoadedRun) -> Estimate | None:
        """KL in nats per text; None if not measured, and for guided samples, which come from another distribution."""
        return self._divergence(run, lambda report: report.divergence.kl if report.divergence else None)

    def kl_per_token(self, run: LoadedRun) -> Estimate | None:
        """The same in nats per token."""
        return self._divergence(run, lambda report: report.divergence.kl_per_token if report.divergence else None)

    def perplexity(self, run: LoadedRun) -> Estimate | None:
        """Perplexity of the run's samples under the reference."""
        found = self._under(run)
        return None if found is None else found.perplexity

    def bits_per_byte(self, run: LoadedRun) -> Estimate | None:
        """Bits per byte of the run's samples under the reference."""
        found = self._under(run)
        return None if found is None else found.bits_per_byte

    def moved(self, group: Group) -> Group:
        """The group without the reference itself, whose KL of 0 says nothing about other seeds."""
        others = [run for run in group.runs if run.folder not in self.own]
        return Group(group.label, others or group.runs)

    def _divergence(self, run: LoadedRun, of: Callable[[ReferenceReport], Estimate | None]) -> Estimate | None:
        if run.guidance is not None:
            return None
        if run.folder in self.own:
            return Estimate(value=0, low=0, high=0)
        report = self.reports.get(run.folder)
        return None if report is None else of(report)

    def _under(self, run: LoadedRun) -> UnderReferenceFacts | None:
        name = "samples" if run.guidance is None else "guided"
        report = self.reports.get(run.folder)
        found = None if report is None else report.under_reference.get(name)
        # Samples that were drawn later are not those that the page shows.
        return found if found is not None and found.samples == self.states[run.folder].samples.get(name) else None


@dataclass
class Found:
    """What is stored about references.

    Attributes:
        references: in the order in which the runs name them.
        not_shown: results of other states, with the reason.
    """

    references: list[Reference] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)


def reference_section(comparison: Comparison) -> Section | None:
    """The distances from each reference; None if nothing is stored."""
    found = find_references(comparison)
    if not found.references and not found.not_shown:
        return None
    warnings: dict[str, list[str]] = {}
    for reference in found.references:
        for run in comparison.runs:
            report = reference.reports.get(run.folder)
            for warning in report.warnings if report else ():
                warnings.setdefault(printable(warning), []).append(f"{run.label} and {reference.label}")
    lines = [f"{', '.join(pairs)}: {warning}" for warning, pairs in warnings.items()]
    tables = [(reference, _table(comparison, reference)) for reference in found.references]
    without = [
        f"{reference.label}: of no objective were all seeds compared with it."
        for reference, table in tables
        if not table.rows
    ]
    findings = [Finding("Notes on the references", lines), Finding("Not shown", [*found.not_shown, *without])]
    plots = (_plot(comparison, reference, place) for place, reference in enumerate(found.references, 1))
    return Section(
        "Distance from a reference",
        note="KL says how far training moved a model from a reference, usually the run of mle: it is the mean of "
        "log p(reference) − log p(run) over samples of the reference, at temperature 1. The likelihood of a run's own "
        "samples under the reference shows whether they are still text: broken samples are unlikely.",
        findings=[each for each in findings if each.lines],
        plots=[plot for plot in plots if plot is not None],
        tables=[table for _, table in tables if table.rows],
    )


def find_references(comparison: Comparison) -> Found:
    """What the runs have stored about references, in groups of the same reference and settings.

    Raises:
        UserError: a stored report or a table of samples is damaged.
    """
    states: dict[RunFolder, State] = {run.folder: State(run, run_fingerprint(run.folder)) for run in comparison.runs}
    found, by_key = Found(), dict[object, Reference]()
    for run in comparison.runs:
        for report in read_reference_reports(run.folder).values():
            if report.run != states[run.folder].fingerprint:
                found.not_shown.append(f"{run.label} and {_name(report)}: the run was trained since.")
                continue
            facts = report.reference
            key = (facts.kind, facts.fingerprint, report.drawn)
            if key not in by_key:
                by_key[key] = Reference(
                    _name(report),
                    reports={},
                    own={
                        folder
                        for folder, state in states.items()
                        if facts.kind == "run" and state.fingerprint == facts.fingerprint
                    },
                    states=states,
                )
            by_key[key].reports.setdefault(run.folder, report)
    found.references = _numbered(_joined_by_seed(comparison, list(by_key.values())))
    for reference in found.references:
        for folder, report in reference.reports.items():
            state = states[folder]
            if any(each.samples != state.samples.get(name) for name, each in report.under_reference.items()):
                found.not_shown.append(
                    f"{state.run.label} and {reference.label}: the likelihood of samples, because others were drawn "
                    "since."
                )
    return found


def _joined_by_seed(comparison: Comparison, references: Sequence[Reference]) -> list[Reference]:
    """Join the runs of one group that are each the reference of the runs of their seed, as a sweep compares them."""
    seeds = {run.folder: run.config.training.seed for run in comparison.runs}
    joined, by_group = list[Reference](), dict[object, Reference]()
    for reference in references:
        group = next(
            (
                group
                for group in comparison.groups
                if len(group.runs) > 1 and reference.own and reference.own < {run.folder for run in group.runs}
            ),
            None,
        )
        if group is None or {seeds[folder] for folder in reference.reports} != {seeds[own] for own in reference.own}:
            joined.append(reference)
            continue
        drawn = next(iter(reference.reports.values())).drawn
        if (key := (group.label, drawn)) not in by_group:
            by_group[key] = replace(reference, label=f"{group.label} of the same seed")
            joined.append(by_group[key])
        else:
            by_group[key].reports.update(reference.reports)
            by_group[key].own.update(reference.own)
    return joined


def _numbered(references: Sequence[Reference]) -> list[Reference]:
    """Number those whose label another one has too: they differ in their settings."""
    labels = [reference.label for reference in references]
    again = [labels[:place].count(label) + 1 for place, label in enumerate(labels)]
    return [
        each if number == 1 else replace(each, label=f"{each.label} ({number})")
        for each, number in zip(references, again, strict=True)
    ]


def _name(report: ReferenceReport) -> str:
    name, objective = printable(report.name)[:_LONGEST_NAME], printable(report.reference.objective or "")
    return f"{name} ({objective})" if objective and objective != name else name


def _table(comparison: Comparison, reference: Reference) -> Table:
    columns = [
        ("KL, nats per text", reference.kl),
        ("KL, nats per token", reference.kl_per_token),
        ("perplexity of its samples", reference.perplexity),
        ("bits per byte of its samples", reference.bits_per_byte),
    ]
    rows = []
    for group in comparison.groups:
        kept = reference.moved(group)
        # Estimates of a KL may be negative.
        figures = [kept.figure(of) for _, of in columns[:2]] + [group.figure(of, NOT_NEGATIVE) for _, of in columns[2:]]
        if any(figures):
            rows.append((group, figures))
    shown_columns = [index for index in range(len(columns)) if any(figures[index] for _, figures in rows)]
    return Table(
        f"Distance from {reference.label}",
        _table_note(comparison, reference),
        [columns[index][0] for index in shown_columns],
        [
            Row(
                group.label,
                [Cell.of(figures[index]) for index in shown_columns],
                group.objective,
                group.guidance is not None,
            )
            for group, figures in rows
        ],
    )


def _table_note(comparison: Comparison, reference: Reference) -> str:
    report = next(iter(reference.reports.values()))
    number, limit = report.drawn.reference_samples, report.drawn.max_tokens
    length = "" if limit is None else f" of at most {format_count(limit, 'token')}"
    text = f"KL is over {number:,} samples of the reference{length}; its intervals are 95 %."
    if any(len(group.runs) > 1 and len(reference.moved(group).runs) < len(group.runs) for group in comparison.groups):
        text += " The reference itself is left out of the KL of its seeds."
    if any(group.guidance is not None for group in comparison.groups):
        text += " Guided samples come from another distribution, whose KL is not measured."
    missing = [run.label for run in comparison.runs if run.folder not in {*reference.reports, *reference.own}]
    return text + (f" Not measured: {listed(missing)}." if missing else "")


def _plot(comparison: Comparison, reference: Reference, place: int) -> Plot | None:
    """Misalignment against KL, if every run was measured; guided samples have no KL."""
    measured = [
        (group, kl, score)
        for group in comparison.groups
        if group.guidance is None
        and (kl := reference.moved(group).figure(reference.kl)) is not None
        and (score := group.figure(misalignment)) is not None
    ]
    plain = [group for group in comparison.groups if group.guidance is None]
    if len(measured) < max(2, len(plain)):
        return None
    ringed, about_rings = Judgement(comparison).rings([group for group, _, _ in measured])
    seeds = {group.label: values_by_seed(reference.moved(group), reference.kl, misalignment) for group in plain}
    caption = "Mean misalignment of samples against KL from the reference, with 95 % intervals."
    if any(seeds.values()):
        caption += " Faint marks are single seeds."
    points = [
        Point(group.label, group.objective, False, kl, score, seeds[group.label], any(group is each for each in ringed))
        for group, kl, score in measured
    ]
    return Plot(
        "distance" if place == 1 else f"distance-{place}",
        f"Misalignment against the distance from {reference.label}",
        caption + about_rings,
        "; ".join(f"{group.label}: misalignment {shown(score)}, KL {shown(kl)}" for group, kl, score in measured),
        lambda look: draw_points(look, points, "KL from the reference, nats per text", misalignment_axis(comparison)),
    )
