"""Where a run tells what it does, as its settings ask for it: to a person, to a log, or to both."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.labelling.telling.log_file import STDERR
from pipeline.labelling.telling.logs import RunLog, run_log
from pipeline.labelling.telling.progress import Progress
from pipeline.labelling.telling.reporter import Reporter, reporter_for

# Seconds between lines that say how far the run has come.
_PROGRESS_EVERY_S = 60.0


class LogReporter:
    """A `Reporter` where no person reads: what it is told goes into the log."""

    def __init__(self, log: RunLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._step = ""
        self._due = clock()

    def step(self, text: str) -> None:  # noqa: D102 - see Reporter, here and below
        self._step = text
        self._due = self._clock() + _PROGRESS_EVERY_S
        self._log.event("step", text=text)

    def measure(self, text: str, done: int, total: int) -> None:  # noqa: D102
        if text != self._step:
            self.step(text)
        elif self._is_due():
            self._log.event("step-progress", text=text, done=done, total=total)

    def update(self, progress: Progress) -> None:
        """Nothing: the log observes the run itself."""

    def note(self, text: str) -> None:  # noqa: D102
        self._log.event("note", level="warning", text=text)

    def _is_due(self) -> bool:
        now = self._clock()
        if now < self._due:
            return False
        self._due = now + _PROGRESS_EVERY_S
        return True


@contextlib.contextmanager
def reporting(config: RunConfig, console: Console) -> Iterator[tuple[Reporter, RunLog]]:
    """A reporter on the console, and the log; with `--log -` the log alone.

    Raises:
        UserError: the log cannot be opened.
    """
    if config.execution.log == STDERR:
        with run_log(config) as log:
            yield LogReporter(log), log
    else:
        with reporter_for(console) as reporter, run_log(config, reporter.note) as log:
            yield reporter, log
