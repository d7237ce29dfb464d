"""The rich console for all terminal output."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from scorers.printing import printable


class Terminal(Console):
    """A rich console for foreign text: it reads no markup in strings, and escapes what a terminal would act on.

    Pass `markup=True` to print our own markup.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # The last step before bytes are written; rich adds its own control sequences, such as colours, afterwards.
        return super()._render_buffer(
            each if each.control else Segment(printable(each.text, keep="\n"), each.style) for each in buffer
        )
