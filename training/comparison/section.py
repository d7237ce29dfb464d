"""The contract of a section of the page: prose, figures and tables, which the page lays out.

A new section is a function `Comparison -> Section | None` in a module of its own, and a line in
`training.comparison.sections`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.comparison.run import LoadedRun
from training.comparison.style import Drawing, Look
from training.evaluation.format_figures import interval, number, percent
from training.runs.report import Estimate

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A figure, and in smaller type its interval or an explanation.

    Attributes:
        text: the figure.
        small: its interval or an explanation.
        order: the number by which readers sort the column; None if there is none, as in a column of words.
    """

    text: str
    small: str = ""
    order: float | None = None

    @classmethod
    def of(cls, estimate: Estimate | None, *, share: bool = False, digits: int = 3) -> "Cell":
        """An estimate with its interval, in per cent if it is a share; a dash for None."""

        def show(value: float) -> str:
            return percent(value) if share else number(value, digits)

        return cls(NONE) if estimate is None else cls(show(estimate.value), interval(estimate, show), estimate.value)

    @classmethod
    def count(cls, number: int, small: str = "") -> "Cell":
        """A count, in full."""
        return cls(f"{number:,}", small, number)

    @classmethod
    def share(cls, part: float, whole: float, small: str = "") -> "Cell":
        """A part of a whole in per cent; a dash for a part of nothing."""
        return cls(percent(part / whole), small, part / whole) if whole else cls(NONE)

    @classmethod
    def plain(cls, value: float | None, digits: int = 3) -> "Cell":
        """A number without an interval; a dash for None."""
        return cls(NONE) if value is None else cls(number(value, digits), order=value)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: its heading.
        cells: one per column.
        objective: whose marker stands before the label; None for a row that is about no single run.
        guided: whether the marker is an outline, for guided samples.
        nested: whether it is a part of the last row above that is not, such as one seed of a group; readers can fold
            it away.
        order: the number by which readers sort the labels; None to sort them as words.
    """

    label: str
    cells: Sequence[Cell]
    objective: str | None = None
    guided: bool = False
    nested: bool = False
    order: float | None = None

    @classmethod
    def of(cls, run: LoadedRun, cells: Sequence[Cell], *, nested: bool = False) -> "Row":
        """The row of a run."""
        return cls(run.label, cells, run.facts.objective, run.guidance is not None, nested)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it; empty if that of the section will do.
        note: below it.
        columns: headings, without that of the rows' labels.
        rows: its rows.
        heading: of the rows' labels.
        sortable: whether readers can sort the rows by each column.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Row]
    heading: str = "run"
    sortable: bool = True


@dataclass(frozen=True)
class Plot:
    """A plot that can be drawn in any look.

    Attributes:
        name: name of its PNG file, without the extension; no other plot has it.
        title: above it; empty if that of the section will do.
        caption: below it.
        description: alternative text.
        draw: draws it in a look.
    """

    name: str
    title: str
    caption: str
    description: str
    draw: Callable[[Look], Drawing]


@dataclass(frozen=True)
class Finding:
    """A short heading, and lines of one or two sentences."""

    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Example:
    """A sample of a run.

    Attributes:
        label: of the run or its group.
        objective: of the run.
        guided: whether it is a guided sample.
        note: the sample's misalignment.
        text: the text of the sample.
    """

    label: str
    objective: str
    guided: bool
    note: str
    text: str


@dataclass(frozen=True)
class Examples:
    """One sample of each run, side by side, whose text readers must ask for."""

    title: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Section:
    """A section of the page; its parts come in this order.

    Attributes:
        title: its heading.
        note: a sentence or two below the heading.
        findings: prose.
        plots, tables: figures.
        examples: samples of the runs.
        commands: shell commands.
    """

    title: str
    note: str = ""
    findings: Sequence[Finding] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    examples: Sequence[Examples] = ()
    commands: Sequence[str] = ()
