"""Locks of a run folder.

Two launches at once would take each other's checkpoints for damaged ones, and two evaluations at once would mix their
parts.
"""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from scorers.errors import IncompleteError
from scorers.printing import message
from training.disk import output_error, writing
from training.runs.folder import RunFolder

# Ranks whose parent was killed are asked to stop; allow them time to save.
_WAIT_S = 120.0
_POLL_S = 0.5
_LONGEST = 300  # characters of the name of a process


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
        _wait(f"{folder.path} is being trained", f"still trains into {folder.path}", file, report)
        yield


@contextmanager
def sole_writer(results: Path) -> Iterator[None]:
    """Hold the lock of results that consist of several files, so that all of them are of one process.

    As for `sole_launch`; a line on stderr says which process is waited for. The lock lies beside the results, which may
    be removed meanwhile.

    Args:
        results: a folder in that of a run, existing or not.

    Raises:
        IncompleteError: another process held the lock for two minutes, or the folder cannot be written.
    """
    path = results.with_name(f".{results.name}.lock")
    with writing(results):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        _wait(f"{results} is being written", f"still writes {results}", file, _print)
        yield


def _print(line: str) -> None:
    sys.stderr.write(message(f"{line}\n"))
    sys.stderr.flush()


def _wait(busy: str, doing: str, file: IO[str], report: Callable[[str], None]) -> None:
    until, reported = time.monotonic() + _WAIT_S, False
    while not _acquire(file):
        file.seek(0)
        other = file.read(_LONGEST) or "another process"
        if time.monotonic() > until:
            raise IncompleteError(
                f"{busy} by {other}, and only one process at a time can. Wait for it, or stop it; then run the same "
                "command again to resume."
            )
        if not reported:
            report(f"Waiting for {other}, which {doing} …")
            reported = True
        time.sleep(_POLL_S)
    # The holder is recorded only for messages, so ignore a full disk.
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())


def _acquire(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # The file system has no locks.
        return True
    return True
