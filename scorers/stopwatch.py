"""Time that work takes, whatever else the machine is doing."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Of the process's first thread: nanoseconds on a core, nanoseconds ready to run but without one, and turns.
_SCHEDULER = Path("/proc/self/schedstat")


@dataclass
class Took:
    """What a block took.

    Attributes:
        seconds: of wall time, less the time that its thread, or a process that it ran, waited for a core which others
            were using.
        waited: that time; 0 where the kernel does not tell.
    """

    seconds: float = 0.0
    waited: float = 0.0

    @property
    def share(self) -> float:
        """Of the wall time, in [0, 1], what was not waited."""
        wall = self.seconds + self.waited
        return self.seconds / wall if wall else 1.0


@contextmanager
def stopwatch() -> Iterator[Took]:
    """Time the block, which runs in the main thread; the figures are there when it ends."""
    took = Took()
    began, waited, own, children = time.perf_counter(), _waited(), time.thread_time(), _children()
    try:
        yield took
    finally:
        wall = time.perf_counter() - began
        took.waited = min(max(_waited() - waited, 0.0), wall)
        ran = _children() - children
        if ran and took.waited:
            # While it slept, they had a core or waited for one: nobody says which, but how long they had one.
            took.waited = max(took.waited, wall - (time.thread_time() - own) - ran)
        took.seconds = wall - took.waited


def _children() -> float:
    """CPU seconds of processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _waited() -> float:
    try:
        return int(_SCHEDULER.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
