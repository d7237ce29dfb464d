"""An end for steps that hang: in a collective whose peer is gone, on a disk that does not answer, in a lock."""

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Watchdog:
    """Ends this process when a step takes too long, and leaves behind where each of its threads was.

    The clock is a thread in C, which no lock of Python's can stop.

    Args:
        folder: gets a file a rank and process; those that stay empty are removed.
        rank: of this process.
        seconds: that a step may take.
    """

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self._folder = folder
        self._rank = f"rank-{rank:05d}-"
        self._seconds = seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep the file open for what may have to be written in a hurry."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{self._rank}{os.getpid()}.txt").open("w") as self._file:
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        # Also of processes of this rank that were killed.
        for path in self._folder.glob(f"{self._rank}*.txt"):
            if not path.stat().st_size:
                path.unlink()
        # Another rank may still have its own.
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    @contextmanager
    def step(self) -> Iterator[None]:
        """The block must end in time, or the process does, with status 1."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
