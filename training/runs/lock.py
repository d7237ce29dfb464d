"""The lock of a run folder: two launches at once would take each other's checkpoints for damaged ones."""

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

# Ranks whose parent was killed are asked to stop; allow them time to save.
_WAIT_S = 120.0
_POLL_S = 0.5


@contextmanager
def sole_launch(folder: RunFolder, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a run folder, creating the folder if needed. Called on rank 0.

    The kernel releases the lock when the process ends. On a file system without locks between machines, such as Lustre
    by default, the lock excludes only launches on the same machine, or none.

    Args:
        folder: the folder of the run.
        report: called with a line if this launch has to wait.

    Raises:
        IncompleteError: another launch held the lock for two minutes, or there is no room.
        UserError: the folder cannot be written.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        file = folder.lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise output_error(folder.path, error) from error
    with file:
        _wait(folder, file, report)
        # The holder is recorded only for messages, so ignore a full disk.
        with suppress(OSError):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _wait(folder: RunFolder, file: IO[str], report: Callable[[str], None]) -> None:
    until, reported = time.monotonic() + _WAIT_S, False
    while not _acquire(file):
        file.seek(0)
        other = file.read() or "another process"
        if time.monotonic() > until:
            raise IncompleteError(
                f"{folder.path} is being trained by {other}, and only one launch at a time can. Wait for it, or stop "
                "it; then run the same command again to resume."
            )
        if not reported:
            report(f"Waiting for {other}, which still trains into {folder.path} …")
            reported = True
        time.sleep(_POLL_S)


def _acquire(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # The file system has no locks.
        return True
    return True
