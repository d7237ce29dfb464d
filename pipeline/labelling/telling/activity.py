"""Who works at what in a run, put together from what the scheduler tells: for `phf status` and metrics."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from pipeline.corpus.plan import Unit
from pipeline.labelling.telling.told import RunObserver
from pipeline.labelling.workers.worker import PartResult
from pipeline.units.records import UnitRecord

WorkerState = Literal["starting", "idle", "working"]
WORKER_STATES: tuple[WorkerState, ...] = ("starting", "idle", "working")

# Failures that are remembered with their reasons; all are counted.
_RECENT_FAILURES = 10


class RecentFailure(BaseModel):
    """A unit that raised or was given up, or a worker that was lost; `error` holds no text of the corpus.

    `unit` is the one it happened over, and `attempt` how often that was tried then, where this is known.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    at: AwareDatetime
    group: str
    error: str
    unit: str | None = None
    attempt: int | None = None


@dataclass
class _Worker:
    group: str
    ready: bool = False
    units: set[int] = field(default_factory=set)

    @property
    def state(self) -> WorkerState:
        return "working" if self.units else "idle" if self.ready else "starting"


class Activity(RunObserver):
    """The workers and open units of a run.

    Args:
        groups: names of the groups of workers, in order.
        missing: units that this run has to do.

    Attributes:
        given_up_units: names of units that are not tried again.
        failed_attempts: by group: units that raised, and workers that were lost over one.
        lost_workers: by group, counted as attempts or not.
        failures: the last few, the newest last.
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
        # Units that a worker has or had and that are not committed: the groups that are done with each.
        self._open: dict[int, set[str]] = {}
        self._committed = 0

    def workers(self) -> dict[str, dict[WorkerState, int]]:
        """How many workers each group has, by what they do."""
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
        """Units that no worker of a group has had, or that wait there to be tried again."""
        left = self._missing - self._committed - len(self.given_up_units)
        busy: Counter[str] = Counter()
        for worker in self._workers.values():
            busy[worker.group] += len(worker.units & self._open.keys())
        for groups in self._open.values():
            busy.update(groups)
        return {group: max(0, left - busy[group]) for group in dict.fromkeys((*self._groups, *self._in_use()))}

    def hired(self, worker: int, group: str) -> None:  # noqa: D102 - see Observer, here and below
        self._workers[worker] = _Worker(group)

    def ready(self, worker: int, group: str, node: str) -> None:  # noqa: D102
        self._workers.setdefault(worker, _Worker(group)).ready = True

    def sent(self, unit: Unit, group: str, worker: int, attempt: int, *, isolated: bool) -> None:  # noqa: D102
        if not self._begun:
            self._begun = True
            self.on_begin()
        self._workers.setdefault(worker, _Worker(group)).units.add(unit.index)
        self._open.setdefault(unit.index, set())

    def done(  # noqa: D102
        self, unit: Unit, group: str, worker: int, attempt: int, part: PartResult, seconds: float
    ) -> None:
        self._put_down(worker, unit)
        if unit.index in self._open:
            self._open[unit.index].add(group)

    def failed(self, unit: Unit, group: str, worker: int, attempt: int, error: str) -> None:  # noqa: D102
        self._put_down(worker, unit)
        self.failed_attempts[group] += 1
        self._remember(group, error, unit, attempt)

    def lost(self, worker: int, group: str, error: str, *, unit: Unit | None, counted: bool) -> None:  # noqa: D102
        self._workers.pop(worker, None)
        self.lost_workers[group] += 1
        if unit is not None and counted:
            self.failed_attempts[group] += 1
        self._remember(group, error, unit)

    def given_up(self, unit: Unit, group: str, attempts: int, error: str) -> None:  # noqa: D102
        self._open.pop(unit.index, None)
        self.given_up_units.append(unit.name)
        self._remember(group, f"given up: {error}", unit, attempts)

    def dismissed(self, worker: int, group: str) -> None:  # noqa: D102
        self._workers.pop(worker, None)

    def unit_committed(self, unit: Unit, record: UnitRecord, parts: Sequence[PartResult]) -> None:  # noqa: D102
        self._open.pop(unit.index, None)
        self._committed += 1

    def _in_use(self) -> set[str]:
        return {worker.group for worker in self._workers.values()}

    def _put_down(self, worker: int, unit: Unit) -> None:
        if worker in self._workers:
            self._workers[worker].units.discard(unit.index)

    def _remember(self, group: str, error: str, unit: Unit | None, attempt: int | None = None) -> None:
        name = None if unit is None else unit.name
        self.failures.append(RecentFailure(at=datetime.now(UTC), group=group, error=error, unit=name, attempt=attempt))
