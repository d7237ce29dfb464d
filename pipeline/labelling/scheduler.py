"""Hands units to workers, in order and bounded in flight; counts attempts; goes on when workers die.

It knows nothing of Ray: a `Crew` does the work (Ray actors in `pipeline.labelling.actors`, a simulated one in tests).
"""

import enum
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.corpus.plan import Unit
from pipeline.labelling.observing import Observer
from pipeline.labelling.worker import PartResult
from scorers.errors import IncompleteError

# Units a worker is given at once: the one it works on, and one that spares it the wait for the driver.
_QUEUED = 2
# Units that may be begun and not complete, a worker: how far one group may run ahead of another.
_OPEN_A_WORKER = 4
# Workers of a group that die in a row while starting, and units that fail in a row with none done in between, before
# the job gives up: something is wrong with the machine or the job, not with a unit.
_STARTS_IN_A_ROW = 3
_FAILURES_IN_A_ROW = 10
# Seconds between looks at the deadlines.
_DEADLINES_EVERY_S = 1.0


class Kind(enum.Enum):
    """What happened to a worker."""

    READY = "ready"  # it has built its scorers
    DONE = "done"  # it finished the first of its units
    FAILED = "failed"  # the first of its units raised; the worker lives
    DIED = "died"  # the worker is gone, with all that it was given


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a worker: `part` is set when DONE, `error` (without text of the corpus) when FAILED or DIED."""

    kind: Kind
    worker: int
    part: PartResult | None = None
    error: str = ""
    node: str = ""


class Crew(Protocol):
    """The workers. They are named by numbers that are never used again, and do their units in the order given."""

    def hire(self, group: str) -> int:
        """Start a worker for a group; READY or DIED follows."""
        ...

    def send(self, worker: int, unit: Unit) -> None:
        """Give a ready worker a unit; DONE, FAILED or DIED follows."""
        ...

    def dismiss(self, worker: int) -> None:
        """Kill a worker; no more is heard of it."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """What has happened, at once or after at most `timeout` seconds; may be empty."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A unit that was given up: its group, the attempts, and what went wrong with the last one."""

    unit: Unit
    group: str
    attempts: int
    error: str


@dataclass(slots=True)
class _Worker:
    group: str
    ready: bool = False
    since: float = 0.0  # when it began the first of its units
    units: deque[Unit] = field(default_factory=deque)


class Scheduler:
    """Runs units through every group of workers and reports each one that is complete.

    Args:
        crew: does the work.
        workers: workers a group, at least one each; the first group is the base group.
        complete: called with a unit and its parts, in the order of the groups, once all are staged. What it raises ends
            the run.
        notify: told, in a sentence for people, when a worker is lost or a unit is tried again or given up.
        attempts: how often a unit whose worker dies or raises is tried in a group.
        unit_deadline_s: seconds after which a worker that is still at a unit is killed.
        clock: monotonic seconds.

    Attributes:
        failures: units given up so far.
        stopping: set by `stop`.
    """

    def __init__(
        self,
        crew: Crew,
        workers: Mapping[str, int],
        complete: Callable[[Unit, Sequence[PartResult]], None],
        *,
        notify: Callable[[str], None] = lambda _: None,
        attempts: int = 3,
        unit_deadline_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self.failures: list[Failure] = []
        self.stopping = False
        self._crew = crew
        self._counts = dict(workers)
        self._complete = complete
        self._notify = notify
        self._attempts = attempts
        self._unit_deadline_s = unit_deadline_s
        self._clock = clock
        self._observer = observer or Observer()
        self._workers: dict[int, _Worker] = {}
        # Ready workers that can take another unit, in the order in which they became so.
        self._free: dict[str, dict[int, None]] = {group: {} for group in workers}
        self._backlog: dict[str, deque[Unit]] = {group: deque() for group in workers}
        self._open: dict[int, dict[str, PartResult]] = {}
        self._tried: dict[tuple[int, str], int] = {}
        self._died_starting = dict.fromkeys(workers, 0)
        self._failed_in_a_row = 0
        self._stop_by = float("inf")
        self._deadlines_at = 0.0

    def run(self, units: Iterable[Unit], tick: Callable[[], None] = lambda: None) -> None:
        """Do all units. Returns when each is complete or in `failures`, or soon after `stop`.

        Args:
            units: pulled as they are needed.
            tick: called at least once a second.

        Raises:
            IncompleteError: workers die again and again, or unit after unit fails.
        """
        coming = iter(units)
        try:
            for group, count in self._counts.items():
                for _ in range(count):
                    self._hire(group)
            while self._refill(coming):
                for event in self._crew.wait(1.0):
                    # Events of one call may name a worker that an earlier one of them has ended.
                    if event.worker in self._workers:
                        self._handle(event)
                self._enforce_deadlines()
                tick()
        finally:
            for worker in list(self._workers):
                self._dismiss(worker)

    @property
    def working(self) -> int:
        """Workers that have a unit."""
        return sum(bool(worker.units) for worker in self._workers.values())

    def stop(self, grace_s: float) -> None:
        """Hand out nothing more; `run` returns when the units being worked on are done, or after `grace_s` seconds."""
        self.stopping = True
        self._stop_by = self._clock() + grace_s

    def _refill(self, coming: Iterator[Unit]) -> bool:
        """Give work to whoever can take some; whether there is anything left to wait for."""
        if self.stopping:
            for number, worker in list(self._workers.items()):
                if not worker.units:
                    self._dismiss(number)
            return bool(self._workers) and self._clock() < self._stop_by
        for group, free in self._free.items():
            # A second unit only while there is one for everybody: at the end nobody waits behind a busy worker.
            for queued, wanted in enumerate([1] + [self._counts[group]] * (_QUEUED - 1)):
                for number in [each for each in free if len(self._workers[each].units) == queued]:
                    if not self._prepare(group, coming, wanted):
                        break
                    self._send(number, self._backlog[group].popleft())
        return bool(self._open) or self._open_next(coming)

    def _prepare(self, group: str, coming: Iterator[Unit], wanted: int) -> bool:
        """Whether a group's backlog holds `wanted` units; opens new ones for that, as far as the bound allows."""
        limit = _OPEN_A_WORKER * sum(self._counts.values())
        while len(self._backlog[group]) < wanted:
            if len(self._open) >= limit or not self._open_next(coming):
                return False
        return True

    def _open_next(self, coming: Iterator[Unit]) -> bool:
        unit = next(coming, None)
        if unit is None:
            return False
        self._open[unit.index] = {}
        for backlog in self._backlog.values():
            backlog.append(unit)
        return True

    def _send(self, number: int, unit: Unit) -> None:
        worker = self._workers[number]
        if not worker.units:
            worker.since = self._clock()
        worker.units.append(unit)
        if len(worker.units) == _QUEUED:
            del self._free[worker.group][number]
        attempt = self._tried.get((unit.index, worker.group), 0) + 1
        self._observer.sent(unit, worker.group, number, attempt, isolated=False)
        self._crew.send(number, unit)

    def _handle(self, event: Event) -> None:
        worker = self._workers[event.worker]
        if event.kind is Kind.READY:
            worker.ready = True
            self._free[worker.group][event.worker] = None
            self._died_starting[worker.group] = 0
            self._observer.ready(event.worker, worker.group, event.node)
        elif event.kind is Kind.DIED:
            self._lose(event.worker, event.error)
        else:
            unit = worker.units.popleft()
            seconds = self._clock() - worker.since
            worker.since = self._clock()
            attempt = self._tried.get((unit.index, worker.group), 0) + 1
            self._free[worker.group][event.worker] = None
            if event.part is not None:
                self._observer.done(unit, worker.group, event.worker, attempt, event.part, seconds)
                self._receive(unit, worker.group, event.part)
            else:
                self._observer.failed(unit, worker.group, event.worker, attempt, event.error)
                self._fail(unit, worker.group, event.error)
            if self.stopping:
                self._dismiss(event.worker)

    def _receive(self, unit: Unit, group: str, part: PartResult) -> None:
        parts = self._open.get(unit.index)
        if parts is None:  # given up in another group meanwhile
            return
        parts[group] = part
        if len(parts) == len(self._counts):
            # Forgotten first: whatever `complete` raises, the unit is not handed out again.
            del self._open[unit.index]
            self._failed_in_a_row = 0
            self._complete(unit, [parts[each] for each in self._counts])

    def _lose(self, number: int, error: str) -> None:
        """A worker is gone: its first unit has used up an attempt, the others are just handed out again."""
        worker = self._workers.pop(number)
        self._free[worker.group].pop(number, None)
        at = worker.units[0] if worker.units else None
        self._observer.lost(number, worker.group, error, unit=at, counted=at is not None)
        self._notify(f"A worker of the group {worker.group} was lost: {error}.")
        if not worker.ready:
            self._died_starting[worker.group] += 1
            if self._died_starting[worker.group] >= _STARTS_IN_A_ROW:
                raise IncompleteError(
                    f"Workers of the group {worker.group!r} die while they start: {error}. "
                    "The same command goes on once that is mended."
                )
        waiting = list(worker.units)[1:]
        self._backlog[worker.group].extendleft(reversed(waiting))
        if worker.units:
            self._fail(worker.units[0], worker.group, error)
        if not self.stopping:
            self._hire(worker.group)

    def _fail(self, unit: Unit, group: str, error: str) -> None:
        if unit.index not in self._open:
            return
        key = (unit.index, group)
        self._tried[key] = self._tried.get(key, 0) + 1
        if self._tried[key] < self._attempts:
            self._notify(f"Unit {unit.name} failed, attempt {self._tried[key]} of {self._attempts}: {error}.")
            self._backlog[group].appendleft(unit)
            return
        self._notify(f"Unit {unit.name} is given up after {self._tried[key]} attempts: {error}.")
        self._observer.given_up(unit, group, self._tried[key], error)
        del self._open[unit.index]
        for backlog in self._backlog.values():
            if unit in backlog:
                backlog.remove(unit)
        self.failures.append(Failure(unit, group, self._tried[key], error))
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _FAILURES_IN_A_ROW:
            raise IncompleteError(
                f"{self._failed_in_a_row} units in a row failed, the last one {unit.name}, {self._tried[key]} times: "
                f"{error}. The same command goes on once that is mended."
            )

    def _enforce_deadlines(self) -> None:
        now = self._clock()
        if now < self._deadlines_at:
            return
        self._deadlines_at = now + _DEADLINES_EVERY_S
        late = [
            number
            for number, worker in self._workers.items()
            if worker.units and now - worker.since > self._unit_deadline_s
        ]
        for number in late:
            self._crew.dismiss(number)
            self._lose(number, f"it was not done after {self._unit_deadline_s:g} s (execution.unit_deadline_s)")

    def _hire(self, group: str) -> None:
        number = self._crew.hire(group)
        self._workers[number] = _Worker(group)
        self._observer.hired(number, group)

    def _dismiss(self, number: int) -> None:
        worker = self._workers.pop(number)
        self._free[worker.group].pop(number, None)
        self._crew.dismiss(number)
        self._observer.dismissed(number, worker.group)
