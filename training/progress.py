"""Tell a person how far a long piece of work is: bars on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from scorers.printing import message

_PLAIN_EVERY_S = 10.0


class StageProgress:
    """Called with a stage, what is done and of how much; a context manager, which clears the bars at its end.

    Everything goes to stderr, so that stdout holds nothing but results. Without a terminal a stage that takes less than
    ten seconds is not mentioned.

    Args:
        title: what the stages are of; stands before each.
    """

    def __init__(self, title: str = "") -> None:
        self._title = f"{title}: " if title else ""
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._told = time.monotonic()

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

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` is done in a stage."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(self._title + stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
        elif time.monotonic() - self._told >= _PLAIN_EVERY_S:
            self._told = time.monotonic()
            sys.stderr.write(message(f"{self._title}{stage} {done:,} of {total:,}\n"))
            sys.stderr.flush()
