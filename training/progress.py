"""Progress of long stages: bars on a terminal, otherwise an occasional line."""

import sys
import time
from types import TracebackType
from typing import Any

from scorers.printing import message

_PLAIN_EVERY_S = 10.0


class StageProgress:
    """Show the progress of stages; a context manager, which clears the bars at its end.

    Output goes to stderr, so that stdout has only results. Without a terminal, a stage of less than ten seconds prints
    nothing.

    Args:
        title: printed before each stage.
    """

    def __init__(self, title: str = "") -> None:
        self._title = f"{title}: " if title else ""
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._printed_at = time.monotonic()

    def __enter__(self) -> "StageProgress":
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            from scorers.terminal import Terminal

            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Terminal(stderr=True),
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Update a stage: `done` of `total`, and a note such as its speed."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(self._title + stage, total=total)
            shown = f"{self._title}{stage}{note and f' ({note})'}"
            self._bars.update(self._tasks[stage], completed=done, total=total, description=shown)
        elif time.monotonic() - self._printed_at >= _PLAIN_EVERY_S:
            self._printed_at = time.monotonic()
            sys.stderr.write(message(f"{self._title}{stage} {done:,} of {total:,}{note and f' ({note})'}\n"))
            sys.stderr.flush()
