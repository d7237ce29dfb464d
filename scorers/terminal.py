"""The rich console for all terminal output."""

import textwrap
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.table import Table

from scorers.printing import printable

_LONGEST_WORD = 20  # longer ones are broken


class Terminal(Console):
    """A rich console for foreign text: it reads no markup in strings, and escapes what a terminal would act on.

    Pass `markup=True` to print our own markup.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def print_figures(self, table: Table) -> None:
        """Print a table of which no figure is cut.

        In a table that is too wide, columns on the right keep the width of their figures, with their headings broken at
        spaces, and the others wrap. Where that is not enough, lines are longer than the terminal.
        """
        unlimited = self.options.update_width(10_000)
        if self.measure(table, options=unlimited).maximum <= self.width:
            self.print(table)
            return
        table.collapse_padding = True
        for column in table.columns:
            heading = self.measure(column.header, options=unlimited).minimum
            cells = [self.measure(cell, options=unlimited) for cell in column.cells]
            if column.justify == "right":
                column.min_width = max(heading, *(each.maximum for each in cells), 1)
                column.no_wrap = True
                if isinstance(column.header, str):
                    column.header = textwrap.fill(
                        column.header, column.min_width, break_long_words=False, break_on_hyphens=False
                    )
            else:
                column.overflow = "fold"
                column.min_width = min(max(heading, *(each.minimum for each in cells), 1), _LONGEST_WORD)
        least = self.measure(table, options=unlimited).minimum
        if least > self.width:
            table.width = least
        self.print(table, crop=False)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # The last step before bytes are written; rich adds its own control sequences, such as colours, afterwards.
        return super()._render_buffer(
            each if each.control else Segment(printable(each.text, keep="\n"), each.style) for each in buffer
        )
