"""Measure the time that work takes, without the time it waited for a busy core."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# For the main thread: nanoseconds on a core, nanoseconds spent waiting for a core, and time slices.
_SCHEDULER = Path("/proc/self/schedstat")


@dataclass
class Took:
    """The time that a block took.

    Attributes:
        seconds: wall time less `waited`.
        waited: seconds that its thread, or a process that it ran, waited for a core in use by others; 0 if the kernel
            does not report it.
    """

    seconds: float = 0.0
    waited: float = 0.0

    @property
    def share(self) -> float:
        """The share of the wall time that was not spent waiting, in [0, 1]."""
        wall = self.seconds + self.waited
        return self.seconds / wall if wall else 1.0


@contextmanager
def stopwatch() -> Iterator[Took]:
    """Time the block, which must run in the main thread; the result is filled in when it ends."""
    took = Took()
    began, waited, own, children = time.perf_counter(), _waited(), time.thread_time(), _children()
    try:
        yield took
    finally:
        wall = time.perf_counter() - began
        took.waited = min(max(_waited() - waited, 0.0), wall)
        ran = _children() - children
        if ran and took.waited:
            # While this thread slept, its children ran or waited for a core; only the time they ran is known.
            took.waited = max(took.waited, wall - (time.thread_time() - own) - ran)
        took.seconds = wall - took.waited


def _children() -> float:
    """Return the CPU seconds of child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _waited() -> float:
    try:
        return int(_SCHEDULER.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
