"""Keep text of the corpus out of a process's output and core dumps."""

import contextlib
import os
import resource
import sys
from pathlib import Path


def forbid_core_dumps() -> None:
    """Disable core dumps of this process and of the processes that it starts.

    The limit has no effect where the kernel pipes core dumps into a program; there the filter leaves out all memory
    that is not backed by a file.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0")


def discard_output() -> None:
    """Discard everything that this process and its libraries print: a warning or a crash report may quote the corpus.

    Ray would keep it in its session folder on every node, beyond the end of the job.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
