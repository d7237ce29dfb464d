"""The contract of a section of the page: prose, figures and tables, which the page lays out.

A new section is a function `Comparison -> Section | None` in a module of its own, and a line in
`training.comparison.sections`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.comparison.run import LoadedRun
from training.comparison.style import Look
from training.evaluation.format_figures import interval, number, percent
from training.runs.report import Estimate

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A figure, and in smaller type its interval or an explanation."""

    text: str
    small: str = ""

    @classmethod
    def of(cls, estimate: Estimate | None, *, share: bool = False, digits: int = 3) -> "Cell":
        """An estimate with its interval, in per cent if it is a share; a dash for None."""

        def show(value: float) -> str:
            return percent(value) if share else number(value, digits)

        return cls(NONE) if estimate is None else cls(show(estimate.value), interval(estimate, show))


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: its heading.
        cells: one per column.
        objective: whose marker stands before the label; None for a row that is about no single run.
        guided: whether the marker is an outline, for guided samples.
    """

    label: str
    cells: Sequence[Cell]
    objective: str | None = None
    guided: bool = False

    @classmethod
    def of(cls, run: LoadedRun, cells: Sequence[Cell]) -> "Row":
        """The row of a run."""
        return cls(run.label, cells, run.facts.objective, run.guidance is not None)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it; empty if that of the section will do.
        note: below it.
        columns: headings, without that of the rows' labels.
        rows: its rows.
        heading: of the rows' labels.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Row]
    heading: str = "run"


@dataclass(frozen=True)
class Plot:
    """A plot that can be drawn in any look.

    Attributes:
        name: name of its PNG file, without the extension; no other plot has it.
        title: above it; empty if that of the section will do.
        caption: below it.
        description: alternative text.
        draw: draws it in a look; returns PNG bytes.
    """

    name: str
    title: str
    caption: str
    description: str
    draw: Callable[[Look], bytes]


@dataclass(frozen=True)
class Finding:
    """A short heading, and lines of one or two sentences."""

    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A section of the page; its parts come in this order.

    Attributes:
        title: its heading.
        note: a sentence or two below the heading.
        findings: prose.
        plots, tables: figures.
        commands: shell commands.
    """

    title: str
    note: str = ""
    findings: Sequence[Finding] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    commands: Sequence[str] = ()
