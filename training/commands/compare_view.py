"""Print a comparison in a terminal."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from scorers.terminal import Terminal
from training.comparison.findings import findings
from training.comparison.load import Comparison
from training.comparison.short import in_short
from training.comparison.tables import result_table

_COLUMNS = 4  # of the results: perplexity, the fifth, does not fit into 80 characters


def print_comparison(comparison: Comparison, page: Path) -> None:
    """Print the results, the findings, differences between the runs, and the path of the page."""
    console = Terminal()
    results = result_table(comparison)
    table = RichTable(
        title=results.title, title_justify="left", caption=results.note, caption_justify="left", box=SIMPLE_HEAD,
        pad_edge=False, collapse_padding=True, show_edge=False,
    )  # fmt: skip
    table.add_column("run")
    shown = results.columns[:_COLUMNS]
    for column in shown:
        table.add_column(column, justify="right")
    for row in results.rows:
        texts = [Text.assemble(cell.text, "\n", (cell.small, "dim")) for cell in row.cells[: len(shown)]]
        table.add_row(row.label, *texts)
    console.print()
    console.print_figures(table)
    for finding in [*in_short(comparison), *findings(comparison)]:
        console.print(f"\n[bold]{escape(finding.title)}[/bold]", markup=True)
        for line in finding.lines:
            console.print(line)
    for note in comparison.left_out + comparison.mismatches + comparison.differences:
        console.print(f"\n[yellow]Note:[/yellow] {escape(note)}", markup=True)
    console.print(f"\nThe page: [bold]{escape(str(page))}[/bold]", markup=True, soft_wrap=True)
