"""Run a job's command detached from the terminal, and record when it started and how it ended.

`python -m infra.local.runner FOLDER ID COMMAND...`; the place `local` starts it in a session of its own.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from infra.local.processes import RUNS, identify
from infra.submission.store import JobFiles

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def run(files: JobFiles, command: list[str]) -> int:
    """Run a command, pass on the signals that stop it, and return its exit status; 128 + N if signal N killed it."""
    running: list[subprocess.Popen[bytes]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        for process in running:
            process.send_signal(number)

    # Blocked until there is a process that they can go to.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for each in _SIGNALS:
        signal.signal(each, stop)
    # The command inherits it, as under nohup: the terminal may be closed.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    files.add_event("started", socket.gethostname())
    # `phf.py` unblocks the signals once it can handle them.
    process = subprocess.Popen(command, preexec_fn=_end_with(os.getpid()))  # noqa: S603 - phf; no threads here
    running.append(process)
    files.add_event(RUNS, identify(process.pid) or "-")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    status = process.wait()
    status = 128 - status if status < 0 else status
    files.add_event("ended", str(status))
    return status


def _end_with(runner: int) -> Callable[[], None]:
    """Return a function by which a child asks to be signalled when its runner is killed: nobody would see it run on."""
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != runner:
            os._exit(1)

    return ask


if __name__ == "__main__":
    folder, job_id, *words = sys.argv[1:]
    sys.exit(run(JobFiles(Path(folder), job_id), words))
