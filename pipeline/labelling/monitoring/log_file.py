"""The file of a run's log: it may fail at any time, which costs lines and nothing else."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.config import RunConfig
from scorers.errors import UserError

STDERR = "-"


class LogFile:
    """Where lines go: each is written whole, at once. One that cannot be written is lost and counted, nothing more.

    Args:
        descriptor: open for writing.
        name: for people.
        notify: told once when lines begin to be lost.

    Attributes:
        lost: lines that could not be written.
    """

    def __init__(self, descriptor: int, name: str, notify: Callable[[str], None] = lambda _: None) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._name = name
        self._notify = notify
        self._torn = False

    def write(self, text: str) -> None:
        """Append a line that ends in a newline."""
        # What a full disk left of the line before must not spoil this one.
        data = (b"\n" if self._torn else b"") + text.encode("ascii", "backslashreplace")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
                self._torn = True
            self._torn = False
        except OSError as error:
            self.lost += 1
            if self.lost == 1 and error.errno != errno.EPIPE:
                self._notify(
                    f"Cannot write the log {self._name}: {error.strerror or error}. Labelling goes on; the lines are "
                    "lost until it can be written again."
                )

    def flush(self) -> None:
        """Nothing is held back."""


@contextlib.contextmanager
def open_log(config: RunConfig, notify: Callable[[str], None]) -> Iterator[LogFile | None]:
    """Where `execution.log` sends the lines; None where it asks for no log.

    Args:
        config: of the run.
        notify: told when lines begin to be lost.

    Raises:
        UserError: the file cannot be opened, or lies below the output.
    """
    name = config.execution.log
    if name is None:
        yield None
    elif name == STDERR:
        yield LogFile(sys.stderr.fileno(), "stderr")
    else:
        path = Path(name)
        if path.resolve().is_relative_to(Path(config.output.removeprefix("file://")).resolve()):
            raise UserError(f"--log {name} lies below the output {config.output}. Put it beside the output.")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(
                f"Cannot open the log {name}: {error.strerror or error}. Give a --log file that can be written, "
                "or - for stderr."
            ) from None
        try:
            yield LogFile(descriptor, name, notify)
        finally:
            os.close(descriptor)
