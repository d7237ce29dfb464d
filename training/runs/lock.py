"""One launch at a time trains into a folder: two of them would take each other's checkpoints for damaged ones."""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from scorers.errors import IncompleteError
from training.disk import output_error
from training.runs.folder import RunFolder

# Ranks whose parent was killed are asked to stop, and save before they leave.
_WAIT_S = 120.0
_POLL_S = 0.5


@contextmanager
def sole_launch(folder: RunFolder, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder of a run. Rank 0 calls it; the kernel gives the lock up with the process, however that ends.

    Where a file system has no locks between machines, such as Lustre by default, only launches of one machine see each
    other, or none do.

    Args:
        folder: it is made where it is not there.
        tell: is told that this launch waits.

    Raises:
        IncompleteError: another launch has held it for two minutes.
        UserError: it cannot be written; IncompleteError, where there is no room.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        file = folder.lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise output_error(folder.path, error) from error
    with file:
        _wait(folder, file, tell)
        # Who holds it is for a message only; there may be no room.
        with suppress(OSError):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _wait(folder: RunFolder, file: IO[str], tell: Callable[[str], None]) -> None:
    until, told = time.monotonic() + _WAIT_S, False
    while not _taken(file):
        file.seek(0)
        other = file.read() or "another process"
        if time.monotonic() > until:
            raise IncompleteError(
                f"{folder.path} is being trained by {other}, and one launch at a time may. Wait for it, or stop it; "
                "the same command then goes on."
            )
        if not told:
            tell(f"Waiting for {other}, which still trains into {folder.path} …")
            told = True
        time.sleep(_POLL_S)


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks.
        return True
    return True
