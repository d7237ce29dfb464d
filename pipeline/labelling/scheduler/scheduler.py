"""Hand out units to workers in order, with a bounded number in flight; count attempts and survive lost workers.

The scheduler does not know Ray: a `Backend` runs the workers. The cost of an event does not depend on the number of
workers or units.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.corpus.plan import Unit
from pipeline.labelling.scheduler.attempts import Attempts
from pipeline.labelling.scheduler.autoscaling import Pool
from pipeline.labelling.scheduler.backend import Backend, Event, Kind
from pipeline.labelling.scheduler.events import Observer, UnitFailed, UnitGivenUp, UnitSent, UnitStaged, WorkerLost
from pipeline.labelling.scheduler.pools import QUEUED, Worker, WorkerPools
from pipeline.labelling.workers.worker import PartResult
from scorers.errors import IncompleteError

# Units per worker that may be begun and incomplete: bounds how far one group runs ahead of another.
_OPEN_PER_WORKER = 4
# Workers of a group that die in a row while starting, and units that fail in a row, before the job gives up: then the
# machine or the job is at fault, not a unit.
_STARTS_IN_A_ROW = 3
_FAILURES_IN_A_ROW = 10
# Seconds between two checks of the deadlines; and the factor by which an isolated unit's deadline is longer, since each
# of its records has a deadline of its own.
_DEADLINE_CHECK_INTERVAL_S = 1.0
_ISOLATED_DEADLINES = 10


@dataclass(frozen=True, slots=True)
class Failure:
    """A unit that was given up: its group, the number of attempts, and the error of the last one."""

    unit: Unit
    group: str
    attempts: int
    error: str


class Scheduler:
    """Runs units through every group of workers and reports each complete unit.

    Args:
        backend: runs the workers.
        pools: by group; the first group is the base group.
        complete: called with a unit and its parts, in the order of the groups, once all are staged. An exception that
            it raises ends the run.
        observer: gets every event except commits.
        notify: gets a message for the user when a worker is lost or a unit is tried again or given up.
        attempts: how often a unit that raises is tried in a group; and again as often, record by record, after it lost
            a worker.
        unit_deadline_s: seconds after which a worker that is still working on a unit is killed.
        clock: monotonic seconds.

    Attributes:
        failures: units given up so far.
        stopping: set by `stop`.
    """

    def __init__(
        self,
        backend: Backend,
        pools: Mapping[str, Pool],
        complete: Callable[[Unit, Sequence[PartResult]], None],
        *,
        observer: Observer = lambda _: None,
        notify: Callable[[str], None] = lambda _: None,
        attempts: int = 3,
        unit_deadline_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures: list[Failure] = []
        self.stopping = False
        self._backend = backend
        self._groups = list(pools)
        self._complete = complete
        self._observe = observer
        self._notify = notify
        self._attempts = Attempts(attempts)
        self._unit_deadline_s = unit_deadline_s
        self._clock = clock
        self._pools = WorkerPools(backend, pools, observer=observer, notify=notify, clock=clock)
        self._backlog: dict[str, deque[Unit]] = {group: deque() for group in pools}
        self._open: dict[int, dict[str, PartResult]] = {}
        self._start_deaths = dict.fromkeys(pools, 0)
        self._failed_in_a_row = 0
        self._exhausted = False
        self._stop_by = float("inf")
        self._deadlines_at = 0.0

    def run(self, units: Iterable[Unit], tick: Callable[[], None] = lambda: None) -> None:
        """Label all units. Returns when each is complete or in `failures`, or soon after `stop`.

        Args:
            units: consumed lazily.
            tick: called at least once a second.

        Raises:
            IncompleteError: too many workers died while starting, or too many units failed in a row.
        """
        coming = iter(units)
        try:
            self._pools.start()
            while not self.stopping and self._hand_out(coming):
                self._step(tick)
                if not self.stopping:
                    self._pools.resize(self._waiting)
            self._pools.dismiss_idle()
            while self.stopping and len(self._pools) and self._clock() < self._stop_by:
                self._step(tick)
        finally:
            self._pools.dismiss_all()

    @property
    def working(self) -> int:
        """Workers that have a unit."""
        return self._pools.busy

    @property
    def workers(self) -> int:
        """All workers, including those that are not ready yet."""
        return len(self._pools)

    def stop(self, grace_s: float) -> None:
        """Hand out no more units; `run` returns when the current units are done, or after `grace_s` seconds."""
        self.stopping = True
        self._stop_by = self._clock() + grace_s

    def _step(self, tick: Callable[[], None]) -> None:
        for event in self._backend.wait(1.0):
            # An earlier event of the same batch may have removed this worker.
            if event.worker in self._pools:
                self._handle(event)
        self._enforce_deadlines()
        tick()

    def _hand_out(self, coming: Iterator[Unit]) -> bool:
        """Send units to all workers that can take one; return whether anything is left to wait for."""
        for group in self._groups:
            # Queue a second unit only while there are enough for all workers, so that no unit waits behind a busy
            # worker at the end while another is idle.
            for having, wanted in enumerate([1] + [self._pools.count(group)] * (QUEUED - 1)):
                while (number := self._pools.next(group, having)) is not None:
                    if not self._prepare(group, coming, wanted):
                        break
                    self._send(number, group, self._backlog[group].popleft())
        return bool(self._open) or self._open_next(coming)

    def _waiting(self) -> dict[str, int]:
        """Units that wait for a worker of each group, including those that may still be opened."""
        more = 0 if self._exhausted else max(0, self._most_open() - len(self._open))
        return {group: len(backlog) + more for group, backlog in self._backlog.items()}

    def _most_open(self) -> int:
        return _OPEN_PER_WORKER * len(self._pools)

    def _prepare(self, group: str, coming: Iterator[Unit], wanted: int) -> bool:
        """Fill a group's backlog up to `wanted` units as far as the bound allows; return whether that worked."""
        while len(self._backlog[group]) < wanted:
            if len(self._open) >= self._most_open() or not self._open_next(coming):
                return False
        return True

    def _open_next(self, coming: Iterator[Unit]) -> bool:
        unit = next(coming, None)
        if unit is None:
            self._exhausted = True
            return False
        self._open[unit.index] = {}
        for backlog in self._backlog.values():
            backlog.append(unit)
        return True

    def _send(self, number: int, group: str, unit: Unit) -> None:
        self._pools.give(number, unit)
        isolated = self._attempts.isolated(unit, group)
        self._backend.send(number, unit, isolated=isolated)
        self._observe(UnitSent(unit, group, number, self._attempts.number(unit, group), isolated))

    def _handle(self, event: Event) -> None:
        group = self._pools[event.worker].group
        if event.kind is Kind.READY:
            self._start_deaths[group] = 0
            self._pools.ready(event.worker, event.node)
        elif event.kind is Kind.DIED:
            self._lose(event.worker, event.error, with_node=event.with_node)
            return
        else:
            unit, seconds = self._pools.take(event.worker)
            attempt = self._attempts.number(unit, group)
            if event.part is not None:
                self._observe(UnitStaged(unit, group, event.worker, attempt, event.part, seconds))
                self._receive(unit, group, event.part)
            else:
                self._observe(UnitFailed(unit, group, event.worker, attempt, event.error))
                self._fail(unit, group, event.error)
        if self.stopping:
            self._pools.dismiss(event.worker)

    def _receive(self, unit: Unit, group: str, part: PartResult) -> None:
        parts = self._open.get(unit.index)
        if parts is None:  # another group has given it up
            return
        parts[group] = part
        if len(parts) == len(self._groups):
            # Close it first, so that it is not handed out again if `complete` raises.
            self._close(unit)
            self._failed_in_a_row = 0
            self._complete(unit, [parts[each] for each in self._groups])

    def _lose(self, number: int, error: str, *, with_node: bool = False) -> None:
        """Remove a lost worker: its first unit may use up an attempt, the others return to the backlog."""
        worker = self._pools.remove(number)
        group, unit = worker.group, worker.units[0] if worker.units else None
        counted = unit is not None and not (with_node and self._attempts.lost_with_node(unit, group))
        self._observe(WorkerLost(number, group, error, unit, counted))
        self._notify(f"A worker of the group {group} was lost: {error}.")
        if not worker.ready and not with_node:
            self._start_deaths[group] += 1
            if self._start_deaths[group] >= _STARTS_IN_A_ROW:
                raise IncompleteError(
                    f"Workers of the group {group!r} die while starting: {error}. "
                    "The same command continues once that is fixed."
                )
        self._hand_back(worker, unit, error, counted=counted)
        if not self.stopping:
            self._pools.refill(group)

    def _hand_back(self, worker: Worker, unit: Unit | None, error: str, *, counted: bool) -> None:
        backlog = self._backlog[worker.group]
        backlog.extendleft(each for each in reversed(list(worker.units)[1:]) if each.index in self._open)
        if unit is None or unit.index not in self._open:
            return
        if not counted:
            backlog.appendleft(unit)
        elif not self._attempts.lost(unit, worker.group):
            self._give_up(unit, worker.group, error)
        else:
            backlog.appendleft(unit)
            self._notify(f"Unit {unit.name} is retried record by record, because it lost a worker: {error}.")

    def _fail(self, unit: Unit, group: str, error: str) -> None:
        if unit.index not in self._open:
            return
        if not self._attempts.failed(unit, group):
            self._give_up(unit, group, error)
            return
        used = self._attempts.used(unit, group)
        self._notify(f"Unit {unit.name} failed, attempt {used} of {self._attempts.limit}: {error}.")
        self._backlog[group].appendleft(unit)

    def _give_up(self, unit: Unit, group: str, error: str) -> None:
        attempts = self._attempts.used(unit, group)
        self._notify(f"Unit {unit.name} is given up after {attempts} attempts: {error}.")
        self._observe(UnitGivenUp(unit, group, attempts, error))
        self._close(unit)
        for backlog in self._backlog.values():
            if unit in backlog:
                backlog.remove(unit)
        self.failures.append(Failure(unit, group, attempts, error))
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _FAILURES_IN_A_ROW:
            raise IncompleteError(
                f"{self._failed_in_a_row} units in a row failed, the last one {unit.name}, {attempts} times: "
                f"{error}. The same command continues once that is fixed."
            )

    def _close(self, unit: Unit) -> None:
        del self._open[unit.index]
        self._attempts.forget(unit, self._groups)

    def _enforce_deadlines(self) -> None:
        now = self._clock()
        if now < self._deadlines_at:
            return
        self._deadlines_at = now + _DEADLINE_CHECK_INTERVAL_S
        for number in self._pools.late(self._allowed_s):
            allowed = self._allowed_s(self._pools[number])
            self._backend.dismiss(number)
            self._lose(number, f"it did not finish a unit within {allowed:g} s (execution.unit_deadline_s)")

    def _allowed_s(self, worker: Worker) -> float:
        isolated = self._attempts.isolated(worker.units[0], worker.group)
        return self._unit_deadline_s * (_ISOLATED_DEADLINES if isolated else 1)
