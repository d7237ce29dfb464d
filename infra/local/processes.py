"""Find the processes of a job on this machine again, and only those."""

from contextlib import suppress

RUNS = "runs"
"""The event by which the runner records the process of its command; its value is from `identify`."""


def identify(pid: int) -> str | None:
    """Return a word for a process, which tells it from a later one with its number; None if there is none."""
    started = start_time(pid)
    return None if started is None else f"{pid}:{started}"


def is_alive(process: str) -> bool:
    """Return whether a process from `identify` is alive."""
    return identify(pid_of(process)) == process


def pid_of(process: str) -> int:
    """Return the number of a process from `identify`; 0 for another word."""
    pid = process.partition(":")[0]
    return int(pid) if pid.isdecimal() else 0


def start_time(pid: int) -> float | None:
    """Return when a process started, as Unix time in seconds; None if there is none, or if it has ended."""
    import psutil  # type: ignore[import-untyped]

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            started: float = process.create_time()
            return started
    return None
