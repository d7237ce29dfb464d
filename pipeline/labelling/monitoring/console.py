"""The progress display: a live line on a terminal, occasional plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar

from pipeline.config import RunConfig
from pipeline.labelling.monitoring.log_file import STDERR
from pipeline.labelling.monitoring.logs import RunLog, run_log
from pipeline.labelling.monitoring.progress import Progress
from scorers.amounts import format_count, format_duration, format_rate
from scorers.printing import message

# Seconds between plain lines: at first, at most, and as a share of the elapsed time.
_FIRST_S, _MAX_S, _SHARE = 5.0, 60.0, 0.05


class Reporter(Protocol):
    """Shows the progress of a run. Everything goes to stderr; stdout is for results."""

    def step(self, text: str) -> None:
        """Begin a step of unknown duration."""
        ...

    def measure(self, text: str, done: int, total: int) -> None:
        """Show the progress of a step."""
        ...

    def update(self, progress: Progress) -> None:
        """Show the progress of labelling."""
        ...

    def note(self, text: str) -> None:
        """Print a message that should not be missed."""
        ...


class PlainReporter:
    """Prints lines: each step, then its figures, every few seconds at first and every minute later."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._began = clock()
        self._due = 0.0
        self._step = ""

    def step(self, text: str) -> None:  # noqa: D102 - see Reporter, here and below
        self._step = text
        self._began = self._clock()
        self._due = self._began + _FIRST_S
        self._line(f"{text} …")

    def measure(self, text: str, done: int, total: int) -> None:  # noqa: D102
        if text != self._step:
            self.step(text)
        elif self._is_due():
            self._line(f"{text}: {_share(done, total)}")

    def update(self, progress: Progress) -> None:  # noqa: D102
        if self._is_due():
            self._line(figures(progress))

    def note(self, text: str) -> None:  # noqa: D102
        self._line(text)

    def _is_due(self) -> bool:
        now = self._clock()
        if now < self._due:
            return False
        self._due = now + min(_MAX_S, max(_FIRST_S, _SHARE * (now - self._began)))
        return True

    def _line(self, text: str) -> None:
        self._stream.write(f"{message(text)}\n")
        self._stream.flush()


class LiveReporter:
    """Shows one live line on a terminal; leaving the context removes it."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "LiveReporter":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, text: str) -> None:  # noqa: D102
        self._show(f"{text} …", 0, None)

    def measure(self, text: str, done: int, total: int) -> None:  # noqa: D102
        self._show(f"{text}: {_share(done, total)}", done, total)

    def update(self, progress: Progress) -> None:  # noqa: D102
        self._show(figures(progress), progress.committed, progress.units)

    def note(self, text: str) -> None:  # noqa: D102
        self._bar.console.print(text, markup=False, highlight=False)

    def _show(self, text: str, done: int, total: int | None) -> None:
        self._bar.reset(self._task, total=total, completed=done, description=text)


@contextlib.contextmanager
def reporter_for(console: Console) -> Iterator[Reporter]:
    """A live line where the console is a terminal, plain lines elsewhere."""
    if console.is_terminal:
        with LiveReporter(console) as reporter:
            yield reporter
    else:
        yield PlainReporter(console.file)


def figures(progress: Progress) -> str:
    """Format the figures of a run as one line."""
    parts = [f"{progress.committed:,}/{format_count(progress.units, 'unit')}"]
    if progress.records:
        parts.append(format_rate(progress.records_per_s, "records"))
    else:
        parts.append(f"{progress.working:,} of {format_count(progress.workers, 'worker')} at work")
    if progress.quarantined:
        parts.append(f"{progress.quarantined.total():,} quarantined")
    if progress.failed:
        parts.append(f"{format_count(len(progress.failed), 'unit')} failed")
    if progress.remaining_s:
        parts.append(f"{format_duration(progress.remaining_s)} left")
    return "Labelling: " + ", ".join(parts)


def _share(done: int, total: int) -> str:
    return f"{done / total:.0%}" if total else "100%"


# Seconds between progress lines in the log.
_PROGRESS_INTERVAL_S = 60.0


class LogReporter:
    """A `Reporter` that writes to the structured log."""

    def __init__(self, log: RunLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._step = ""
        self._due = clock()

    def step(self, text: str) -> None:  # noqa: D102 - see Reporter, here and below
        self._step = text
        self._due = self._clock() + _PROGRESS_INTERVAL_S
        self._log.event("step", text=text)

    def measure(self, text: str, done: int, total: int) -> None:  # noqa: D102
        if text != self._step:
            self.step(text)
        elif self._is_due():
            self._log.event("step-progress", text=text, done=done, total=total)

    def update(self, progress: Progress) -> None:
        """Do nothing: the log observes the run itself."""

    def note(self, text: str) -> None:  # noqa: D102
        self._log.event("note", level="warning", text=text)

    def _is_due(self) -> bool:
        now = self._clock()
        if now < self._due:
            return False
        self._due = now + _PROGRESS_INTERVAL_S
        return True


@contextlib.contextmanager
def reporting(config: RunConfig, console: Console) -> Iterator[tuple[Reporter, RunLog]]:
    """Yield a reporter and the log; with `--log -` the reporter writes to the log, not to the console.

    Raises:
        UserError: the log cannot be opened.
    """
    if config.execution.log == STDERR:
        with run_log(config) as log:
            yield LogReporter(log), log
    else:
        with reporter_for(console) as reporter, run_log(config, reporter.note) as log:
            yield reporter, log
