"""An end for what hangs: in a collective whose peer is gone, on a disk that does not answer, in a lock."""

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

# How long after its time Python may still take to say what happened.
_SAYING_S = 5.0


class Watchdog:
    """Ends this process when a step or a checkpoint takes too long, and leaves behind where each of its threads was.

    A thread says so and ends it. Where that cannot run, because something keeps Python's lock, a clock in C does,
    and says nothing.

    Args:
        folder: gets a file a rank and process; those that stay empty are removed.
        rank: of this process.
        seconds: that either may take.
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
        """Keep the file open for what may have to be written in a hurry."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._over.clear()
        prefix = f"rank-{self._rank:05d}-"
        try:
            place = self._folder / f"{prefix}{os.getpid()}.txt"
            place.unlink(missing_ok=True)  # of a process that had this number, or another name of some other file
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
        """The block must end in time, or the process does, with status 1. One within another is a part of that."""
        if self._file is None or self._due is not None:
            yield
            return
        self._due = time.monotonic() + self._seconds
        faulthandler.dump_traceback_later(self._seconds + _SAYING_S, exit=True, file=self._file)
        try:
            yield
        finally:
            self._due = None
            faulthandler.cancel_dump_traceback_later()

    def _clear(self, prefix: str) -> None:
        # Another rank may still have its own; and what ends the block matters more than a file that stays.
        with contextlib.suppress(OSError):
            # Also of processes of this rank that were killed.
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
                    f"or a checkpoint; where each of its threads was stands in {file.name}. The same command "
                    "goes on from the newest checkpoint.\n"
                )
                sys.stderr.flush()
                os._exit(1)
