"""The log file of a run. A write that fails loses lines, but never stops the run."""

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
    """Writes each line whole and unbuffered. A line that cannot be written is lost and counted.

    Args:
        descriptor: open for writing.
        name: name for messages.
        notify: gets one message when the first line is lost.

    Attributes:
        lost: number of lines that could not be written.
    """

    def __init__(self, descriptor: int, name: str, notify: Callable[[str], None] = lambda _: None) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._name = name
        self._notify = notify
        self._torn = False

    def write(self, text: str) -> None:
        """Append a line that ends in a newline."""
        # Start a new line if a full disk has cut the previous one.
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
                    f"Cannot write the log {self._name}: {error.strerror or error}. Labelling continues; log lines "
                    "are lost until it can be written again."
                )

    def flush(self) -> None:
        """Do nothing: writes are unbuffered."""


@contextlib.contextmanager
def open_log(config: RunConfig, notify: Callable[[str], None]) -> Iterator[LogFile | None]:
    """Open the log that `execution.log` names; yield None if there is none.

    `notify` gets a message when the first line is lost.

    Raises:
        UserError: the file cannot be opened, or is below the output.
    """
    name = config.execution.log
    if name is None:
        yield None
    elif name == STDERR:
        yield LogFile(sys.stderr.fileno(), "stderr")
    else:
        path = Path(name)
        if path.resolve().is_relative_to(Path(config.output.removeprefix("file://")).resolve()):
            raise UserError(f"--log {name} is below the output {config.output}. Put it outside the output.")
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
