"""Keep text of the corpus out of what a process leaves behind beside its results: its output, its core."""

import contextlib
import os
import resource
import sys
from pathlib import Path


def forbid_core_dumps() -> None:
    """A process that crashes writes down none of its memory; those that it starts inherit this.

    The limit does not hold where the kernel pipes cores into a program; there the filter leaves out all memory that is
    not a file's.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0")


def silence() -> None:
    """What this process and its libraries print goes nowhere: a warning, or the last words of a crash, may quote text.

    Ray would keep it in its session's folder, on every node and after the job.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
