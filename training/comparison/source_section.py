"""The section about parts of the held-out text, such as the sources that documents come from."""

from collections.abc import Callable

from scorers.amounts import format_count
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Cell, Row, Section, Table
from training.runs.report import Estimate, FieldFacts, GroupFacts


def source_section(comparison: Comparison) -> Section | None:
    """The held-out figures of `phf evaluate --by FIELD`; None without any."""
    fields = dict.fromkeys(run.report.by.field for run in comparison.runs if run.report.by is not None)
    if not fields:
        return None
    return Section(
        "Held-out text by source",
        note="What a preference costs need not be the same everywhere. Lower is better.",
        tables=[_table(comparison, name) for name in fields],
    )


def _table(comparison: Comparison, name: str) -> Table:
    parts = {
        _name(facts, part): part
        for run in reversed(comparison.runs)
        if (facts := run.report.by) is not None and facts.field == name
        for part in _parts(facts)
    }
    # The largest first; the rest last.
    order = sorted(parts, key=lambda each: (each == _REST, -parts[each].bytes))
    rows = []
    for group in comparison.groups:
        figures = [group.figure(_bits_per_byte(name, part)) for part in order]
        if group.guidance is None and any(figures):
            rows.append(Row(group.label, [Cell.of(each, digits=4) for each in figures], group.objective))
    return Table(
        f"Bits per byte by {name}",
        "Intervals are 95 %, over seeds or, for one seed, over documents.",
        [f"{part}, {format_count(parts[part].documents, 'document')}" for part in order],
        rows,
    )


_REST = "all others"


def _parts(facts: FieldFacts) -> list[GroupFacts]:
    return [*facts.groups, *([facts.rest] if facts.rest is not None else [])]


def _name(facts: FieldFacts, part: GroupFacts) -> str:
    if part is facts.rest:
        return _REST
    return f"no {facts.field}" if part.value is None else part.value


def _bits_per_byte(field: str, name: str) -> Callable[[LoadedRun], Estimate | None]:
    def figure(run: LoadedRun) -> Estimate | None:
        facts = run.report.by
        if facts is None or facts.field != field:
            return None
        return next((part.bits_per_byte for part in _parts(facts) if _name(facts, part) == name), None)

    return figure
