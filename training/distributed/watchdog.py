"""The watchdog: end a process that hangs in a collective whose peer is gone, on a dead disk, or in a lock."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Time for the watchdog's thread to report, before the timer in C ends the process.
_REPORT_S = 5.0


class Watchdog:
    """Ends this process when a step or a checkpoint takes too long, and writes the stacks of its threads to a file.

    A thread reports the hang and ends the process. If it cannot run because something holds the GIL, a timer in C ends
    the process without a message.

    Args:
        folder: gets one file per rank and process; empty files are removed.
        rank: the rank of this process.
        seconds: time limit of a step or a checkpoint.
    """

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self._folder = folder
        self._rank = rank
        self._seconds = seconds
        self._due: float | None = None
        self._file: IO[str] | None = None
        self._over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the watchdog during the block, with its file already open."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._over.clear()
        prefix = f"rank-{self._rank:05d}-"
        try:
            place = self._folder / f"{prefix}{os.getpid()}.txt"
            place.unlink(missing_ok=True)  # left by an earlier process of this number, or a link to some other file
            with place.open("x") as file:
                self._file = file
                watching = threading.Thread(target=self._watch, args=(file,), name="watchdog", daemon=True)
                watching.start()
                try:
                    yield
                finally:
                    faulthandler.cancel_dump_traceback_later()
                    self._over.set()
                    watching.join()
                    self._file = None
        finally:
            self._clear(prefix)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """End the process with status 1 if the block takes too long. A nested block shares the outer time limit."""
        if self._file is None or self._due is not None:
            yield
            return
        self._due = time.monotonic() + self._seconds
        faulthandler.dump_traceback_later(self._seconds + _REPORT_S, exit=True, file=self._file)
        try:
            yield
        finally:
            self._due = None
            faulthandler.cancel_dump_traceback_later()

    def _clear(self, prefix: str) -> None:
        # The folder may hold files of other ranks, and an error here must not hide the one that ended the block.
        with contextlib.suppress(OSError):
            # Include empty files of killed processes of this rank.
            for path in self._folder.glob(f"{prefix}*.txt"):
                if not path.stat().st_size:
                    path.unlink()
            self._folder.rmdir()

    def _watch(self, file: IO[str]) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            due = self._due
            if due is not None and time.monotonic() > due:
                faulthandler.dump_traceback(file=file)
                sys.stderr.write(
                    f"Stopped: rank {self._rank} has hung for {self._seconds:g} s (training.hang_timeout_s) in a step "
                    f"or a checkpoint; the stacks of its threads are in {file.name}. The same command "
                    "continues from the newest checkpoint.\n"
                )
                sys.stderr.flush()
                os._exit(1)
