"""The scheduler's backend without Ray, for a small job: one process of this machine at a time labels the units."""

import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.corpus.plan import Unit, Units
from pipeline.labelling.resolve import ResolvedJob
from pipeline.labelling.scheduler.backend import Event, Kind, event_of
from pipeline.labelling.workers.labelling_process import LabellingProcess
from pipeline.storage.open import is_local
from scorers import stopping

_PR_SET_PDEATHSIG = 1


@dataclass
class _Worker:
    process: BaseProcess
    pid: int
    connection: "Connection[Any, Any]"
    group: str
    staged: "itertools.count[int]" = field(default_factory=itertools.count)


class LocalBackend:
    """Runs workers as processes; see `pipeline.labelling.scheduler.backend.Backend`.

    The first is forked, with all that this process has imported, which saves a second of work. That is safe only before
    this process has other threads, and neither object stores nor torch survive it; all others are new interpreters.

    Args:
        job: the job, with all units.
        staging: folder for staged parts, below the output.
    """

    def __init__(self, job: ResolvedJob, staging: str) -> None:
        self._job = replace(job, plan=replace(job.plan, units=Units.of([])))
        self._staging = staging
        self._workers: dict[int, _Worker] = {}
        self._names = itertools.count()
        uris = (job.config.output, *(source.uri for source in job.plan.sources))
        self._fork = "torch" not in sys.modules and all(map(is_local, uris))

    def hire(self, group: str) -> int:
        """Start a process."""
        number = next(self._names)
        fork = self._fork and number == 0
        context = multiprocessing.get_context("fork") if fork else multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._job, group, os.getpid()), daemon=False)
        process.start()
        theirs.close()
        assert process.pid is not None  # noqa: S101 - it was started
        self._workers[number] = _Worker(process, process.pid, ours, group)
        return number

    def send(self, worker: int, unit: Unit, *, isolated: bool) -> None:
        """Send a unit to a process, with a unique path for its staged part."""
        each = self._workers[worker]
        staged = f"{self._staging}/{unit.name}.{each.group}.{worker}-{next(each.staged)}.parquet"
        # If it has died, `wait` reports it.
        with suppress(BrokenPipeError, ConnectionResetError):
            each.connection.send((unit, staged, isolated))

    def dismiss(self, worker: int) -> None:
        """Kill a process and all that it has started."""
        each = self._workers.pop(worker)
        each.process.kill()
        with suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each.process.join()
        each.process.close()
        each.connection.close()

    def wait(self, timeout: float) -> list[Event]:
        """Return the answers and deaths of processes, after at most `timeout` seconds.

        Raises:
            UserError: its scorers cannot be built, or are not those of the job.
        """
        numbers = {each.connection: number for number, each in self._workers.items()}
        if not numbers:
            time.sleep(timeout)
        return [self._event(numbers[each]) for each in wait(list(numbers), timeout) if isinstance(each, Connection)]

    def resources(self) -> Mapping[str, float]:
        """The resources of one worker: it reserves none."""
        return {}

    def _event(self, number: int) -> Event:
        each = self._workers[number]
        try:
            answer = each.connection.recv()
        except (EOFError, ConnectionResetError):
            each.process.join()
            error = _cause_of_death(each.process.exitcode or 0)
            self.dismiss(number)
            return Event(Kind.DIED, number, error=error)
        return event_of(number, answer, self._job.fingerprints)


def _work(connection: "Connection[Any, Any]", job: ResolvedJob, group: str, driver: int) -> None:
    """Answer with the start, then with one result a unit, until the driver closes the pipe or kills this process."""
    # Ctrl-C in a terminal reaches the whole session of the driver, which stops its workers itself.
    os.setsid()
    stopping.forget()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        return
    process = LabellingProcess(job, group)
    connection.send(process.start())
    with suppress(EOFError):
        while True:
            connection.send(process.label(*connection.recv()))


def _cause_of_death(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    with suppress(ValueError):
        return f"its process died ({signal.Signals(-status).name})"
    return f"its process died (signal {-status})"
