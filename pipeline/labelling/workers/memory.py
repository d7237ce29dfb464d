"""Measure and watch the memory of a process."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_POLL_INTERVAL_S = 0.1
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def resident_memory(pid: int) -> int:
    """Resident memory of a process in bytes; 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def machine_memory() -> int:
    """Memory in bytes of this machine, or of the container that this process runs in."""
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE
    for limit in _CGROUP_LIMITS:
        try:
            return min(total, int(limit.read_text()))
        except (OSError, ValueError):  # no such limit
            continue
    return total


def watch_memory(limit: int, exceeded: Callable[[], None]) -> None:
    """Call `exceeded` in a thread as soon as this process uses more than `limit` bytes.

    A call into C that holds the GIL delays this until it returns.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_INTERVAL_S):
            if resident_memory(os.getpid()) > limit:
                exceeded()
                return

    threading.Thread(target=watch, daemon=True, name="memory").start()
