"""The progress of a labelling run.

`Pace` is the recent throughput, which predicts the remaining time better than the mean over days. `Activity` tracks
workers and open units from the scheduler's events, for `phf status` and metrics.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from pipeline.corpus.plan import Unit
from pipeline.job.run_status import WORKER_STATES, RecentFailure, WorkerState
from pipeline.job.unit_records import UnitRecord
from pipeline.labelling.scheduler.events import (
    RunEvent,
    UnitCommitted,
    UnitFailed,
    UnitGivenUp,
    UnitSent,
    UnitStaged,
    WorkerDismissed,
    WorkerHired,
    WorkerLost,
    WorkerReady,
)
from pipeline.labelling.workers.worker import PartResult

# The window of the pace: at least so many seconds, and at least so many units.
_WINDOW_S = 180.0
_UNITS = 20


class _Mark(NamedTuple):
    time: float
    units: int
    records: int


class Pace:
    """The recent throughput of a run. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._latest = _Mark(clock(), 0, 0)
        self._marks = deque([self._latest])

    def restart(self) -> None:
        """Measure from now on."""
        self._latest = self._latest._replace(time=self._clock())
        self._marks = deque([self._latest])

    def add(self, records: int) -> None:
        """Count a committed unit with `records` records."""
        now = self._clock()
        self._latest = _Mark(now, self._latest.units + 1, self._latest.records + records)
        if now - self._marks[-1].time >= _WINDOW_S / 100:
            self._marks.append(self._latest)
        while (
            len(self._marks) > 1
            and now - self._marks[1].time >= _WINDOW_S
            and self._latest.units - self._marks[1].units >= _UNITS
        ):
            self._marks.popleft()

    @property
    def unit_s(self) -> float | None:
        """Seconds per unit; None before the first one. Grows while the next unit is overdue."""
        began, units = self._marks[0].time, self._latest.units - self._marks[0].units
        if not units:
            return None
        return max((self._latest.time - began) / units, (self._clock() - began) / (units + 1))

    @property
    def records_per_s(self) -> float:
        """Records per second; falls while the next unit is overdue."""
        records, units = (self._latest.records - self._marks[0].records), (self._latest.units - self._marks[0].units)
        unit_s = self.unit_s
        return records / units / unit_s if unit_s else 0.0

    def seconds_for(self, units: int) -> float | None:
        """Seconds until `units` more units are committed; None before the first unit."""
        unit_s = self.unit_s
        if unit_s is None or not units:
            return None
        return units * unit_s - min(unit_s, self._clock() - self._latest.time)


# Entries of `Progress.seconds` that are not score columns.
STEPS = ("read", "split", "write")


# Failures that are kept with their reasons; all are counted.
_RECENT_FAILURES = 10


@dataclass
class _Worker:
    group: str
    ready: bool = False
    units: set[int] = field(default_factory=set)

    @property
    def state(self) -> WorkerState:
        return "working" if self.units else "idle" if self.ready else "starting"


class Activity:
    """The workers and open units of a run; an observer of its events.

    Args:
        groups: names of the groups of workers, in order.
        missing: number of units that this run has to label.

    Attributes:
        given_up_units: names of units that are not tried again.
        failed_attempts: units that raised and workers lost while labelling one, by group.
        lost_workers: lost workers by group, whether or not they cost an attempt.
        failures: the most recent failures, the newest last.
        on_begin: called when the first unit is handed out.
    """

    def __init__(self, groups: Sequence[str] = (), missing: int = 0) -> None:
        self.given_up_units: list[str] = []
        self.failed_attempts: Counter[str] = Counter()
        self.lost_workers: Counter[str] = Counter()
        self.failures: deque[RecentFailure] = deque(maxlen=_RECENT_FAILURES)
        self.on_begin: Callable[[], None] = lambda: None
        self._begun = False
        self._groups = tuple(groups)
        self._missing = missing
        self._workers: dict[int, _Worker] = {}
        # Units that were sent to a worker and are not committed, with the groups that have finished them.
        self._open: dict[int, set[str]] = {}
        self._committed = 0

    def workers(self) -> dict[str, dict[WorkerState, int]]:
        """The number of workers by group and state."""
        counts: dict[str, dict[WorkerState, int]] = {
            group: dict.fromkeys(WORKER_STATES, 0) for group in dict.fromkeys((*self._groups, *self._in_use()))
        }
        for worker in self._workers.values():
            counts[worker.group][worker.state] += 1
        return counts

    @property
    def working(self) -> int:
        """Workers that have a unit."""
        return sum(bool(worker.units) for worker in self._workers.values())

    @property
    def open_units(self) -> int:
        """Units that are begun and not committed."""
        return len(self._open)

    def backlog(self) -> dict[str, int]:
        """By group, units that no worker of the group has had, or that wait to be tried again."""
        left = self._missing - self._committed - len(self.given_up_units)
        busy: Counter[str] = Counter()
        for worker in self._workers.values():
            busy[worker.group] += len(worker.units & self._open.keys())
        for groups in self._open.values():
            busy.update(groups)
        return {group: max(0, left - busy[group]) for group in dict.fromkeys((*self._groups, *self._in_use()))}

    def __call__(self, event: RunEvent) -> None:
        """Count an event."""
        match event:
            case WorkerHired(worker, group):
                self._workers[worker] = _Worker(group)
            case WorkerReady(worker, group):
                self._workers.setdefault(worker, _Worker(group)).ready = True
            case WorkerLost(worker, group, error, unit, counted):
                self._workers.pop(worker, None)
                self.lost_workers[group] += 1
                if unit is not None and counted:
                    self.failed_attempts[group] += 1
                self._remember(group, error, unit)
            case WorkerDismissed(worker):
                self._workers.pop(worker, None)
            case UnitSent(unit, group, worker):
                if not self._begun:
                    self._begun = True
                    self.on_begin()
                self._workers.setdefault(worker, _Worker(group)).units.add(unit.index)
                self._open.setdefault(unit.index, set())
            case UnitStaged(unit, group, worker):
                self._release(worker, unit)
                if unit.index in self._open:
                    self._open[unit.index].add(group)
            case UnitFailed(unit, group, worker, attempt, error):
                self._release(worker, unit)
                self.failed_attempts[group] += 1
                self._remember(group, error, unit, attempt)
            case UnitGivenUp(unit, group, attempts, error):
                self._open.pop(unit.index, None)
                self.given_up_units.append(unit.name)
                self._remember(group, f"given up: {error}", unit, attempts)
            case UnitCommitted(unit):
                self._open.pop(unit.index, None)
                self._committed += 1

    def _in_use(self) -> set[str]:
        return {worker.group for worker in self._workers.values()}

    def _release(self, worker: int, unit: Unit) -> None:
        if worker in self._workers:
            self._workers[worker].units.discard(unit.index)

    def _remember(self, group: str, error: str, unit: Unit | None, attempt: int | None = None) -> None:
        name = None if unit is None else unit.name
        self.failures.append(RecentFailure(at=datetime.now(UTC), group=group, error=error, unit=name, attempt=attempt))


@dataclass
class Progress:
    """What this run has done so far.

    Attributes:
        units: units of the whole job; `before` of them were committed when this run began, `committed` are now.
        workers: current number of workers, of all groups.
        activity: workers and open units.
        records, sentences, bytes_text: of the units that this run committed; `bytes_text` in UTF-8 bytes.
        quarantined: records of these units, by reason.
        seconds: summed over workers, by score column and by step (`read`, `split`, `write`).
    """

    units: int
    before: int
    workers: int
    activity: Activity = field(default_factory=Activity)
    records: int = 0
    sentences: int = 0
    bytes_text: int = 0
    committed: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.committed = self.before
        self._began = self.clock()
        self._pace = Pace(self.clock)
        # Measure the pace from the first unit on, without the time in which workers load their models.
        self.activity.on_begin = self._pace.restart

    def restart(self) -> None:
        """Restart the clock when labelling begins."""
        self._began = self.clock()
        self._pace.restart()

    def add(self, record: UnitRecord, parts: Sequence[PartResult]) -> None:
        """Count a unit that has just been committed."""
        self.committed += 1
        self.records += record.records
        self.sentences += record.sentences
        self.bytes_text += record.bytes_text
        self.quarantined.update(each.reason for each in record.quarantined)
        for part in parts:
            self.seconds.update(part.seconds)
        self._pace.add(record.records)

    @property
    def failed(self) -> Sequence[str]:
        """Names of the units that were given up."""
        return self.activity.given_up_units

    @property
    def working(self) -> int:
        """Workers that have a unit."""
        return self.activity.working

    @property
    def elapsed_s(self) -> float:
        """Seconds since this run began to label."""
        return self.clock() - self._began

    @property
    def records_per_s(self) -> float:
        """Recent throughput in records per second."""
        return self._pace.records_per_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds until all units are committed at the recent pace; None before the first unit and at the end."""
        return self._pace.seconds_for(self.units - self.committed - len(self.failed))
