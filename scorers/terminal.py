"""The console that everything is printed on."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from scorers.printing import printable


class Terminal(Console):
    """Rich's console for foreign text: strings are no markup, and what a terminal would act on is shown as escapes.

    A print of our own that has markup passes `markup=True`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # The last place before the bytes: what rich writes by itself, such as colours, comes after it.
        return super()._render_buffer(
            each if each.control else Segment(printable(each.text, keep="\n"), each.style) for each in buffer
        )
