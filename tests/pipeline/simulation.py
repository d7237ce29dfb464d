"""A backend without processes, on a simulated clock: tests the real scheduler with any number of workers and faults."""

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.corpus.plan import Unit
from pipeline.job.unit_records import PartFile
from pipeline.labelling.scheduler.backend import Event, Kind
from pipeline.labelling.scheduler.events import (
    PoolResized,
    RunEvent,
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

Fate = str  # "done", "raise", "die", "hang" or "lose-node"


@dataclass
class SimulatedWorker:
    """A worker and the units that it holds."""

    group: str
    ready: bool = False
    units: deque[Unit] = field(default_factory=deque)


class SimulatedBackend:
    """Workers that take `seconds(unit, group)` per unit, with the outcome `fate(unit, group, attempt)`."""

    def __init__(
        self,
        seconds: Callable[[Unit, str], float] = lambda unit, group: 1.0,
        fate: Callable[[Unit, str, int], Fate] = lambda unit, group, attempt: "done",
        start: Callable[[int], Fate] = lambda number: "ready",
        resources: Mapping[str, float] | None = None,
        start_s: float = 0.5,
    ) -> None:
        self.now = 0.0
        self.workers: dict[int, SimulatedWorker] = {}
        self.begun: Counter[tuple[int, str]] = Counter()
        self.order: dict[str, list[int]] = {}
        self.hired = 0
        self.most_in_flight = 0
        self.busy_s = 0.0
        self.isolated: list[tuple[int, str]] = []
        self.capacity: Mapping[str, float] = resources or {}
        self._seconds = seconds
        self._fate = fate
        self._start = start
        self._start_s = start_s
        self._in_flight = 0
        self._queue: list[tuple[float, int, Event]] = []
        self._tick = itertools.count()

    def clock(self) -> float:
        """Simulated seconds."""
        return self.now

    def hire(self, group: str) -> int:
        number = self.hired
        self.hired += 1
        self.workers[number] = SimulatedWorker(group)
        match self._start(number):
            case "ready":
                self._later(self._start_s, Event(Kind.READY, number, node="here"))
            case "die":
                self._later(self._start_s, Event(Kind.DIED, number, error="no model"))
            case "lose-node":
                self._later(self._start_s, Event(Kind.DIED, number, error="its machine went away", with_node=True))
        return number

    def place(self, worker: int) -> None:
        """Find room in the cluster for a worker that is waiting for it."""
        self._later(self._start_s, Event(Kind.READY, worker, node="here"))

    def resources(self) -> Mapping[str, float]:
        return self.capacity

    def send(self, worker: int, unit: Unit, *, isolated: bool) -> None:
        each = self.workers[worker]
        if isolated:
            self.isolated.append((unit.index, each.group))
        assert each.ready
        each.units.append(unit)
        assert len(each.units) <= 2, "more than the bound for a worker"
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        if len(each.units) == 1:
            self._begin(worker)

    def dismiss(self, worker: int) -> None:
        self._in_flight -= len(self.workers.pop(worker).units)

    def wait(self, timeout: float) -> list[Event]:
        until = self.now + timeout
        events: list[Event] = []
        while self._queue and not events and self._queue[0][0] <= until:
            self.now, _, event = heapq.heappop(self._queue)
            if event.worker not in self.workers:
                continue
            worker = self.workers[event.worker]
            if event.kind is Kind.READY:
                worker.ready = True
            elif event.kind is Kind.DIED:
                self.dismiss(event.worker)
            else:
                worker.units.popleft()
                self._in_flight -= 1
                if worker.units:
                    self._begin(event.worker)
            events.append(event)
        if not events:
            self.now = until
        return events

    def _begin(self, number: int) -> None:
        worker = self.workers[number]
        unit = worker.units[0]
        self.begun[unit.index, worker.group] += 1
        self.order.setdefault(worker.group, []).append(unit.index)
        fate = self._fate(unit, worker.group, self.begun[unit.index, worker.group])
        seconds = self._seconds(unit, worker.group)
        self.busy_s += seconds
        if fate == "done":
            self._later(seconds, Event(Kind.DONE, number, part=part_of(unit, worker.group)))
        elif fate == "raise":
            self._later(seconds, Event(Kind.FAILED, number, error="ValueError at scorer.py:1"))
        elif fate == "die":
            self._later(seconds, Event(Kind.DIED, number, error="its process died"))
        elif fate == "lose-node":
            self._later(seconds, Event(Kind.DIED, number, error="its machine went away", with_node=True))

    def _later(self, seconds: float, event: Event) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._tick), event))


# For records of which nobody reads the parts.
PART = PartFile(group="cpu", staged="", path="units/0001/00000/00000000.cpu.parquet", size=1, sha256="0" * 64, rows=1)


def part_of(unit: Unit, group: str) -> PartResult:
    """A part as a worker would return it."""
    return PartResult(unit.index, group, f"staging/{unit.name}.{group}", 1, "", 1, 1, 0, 1, 1, [], {group: 1.0})


def units(count: int) -> list[Unit]:
    """Units 0 to count - 1."""
    return [Unit(index, ()) for index in range(count)]


@dataclass
class Completed:
    """Collects the units that the scheduler completes."""

    parts: dict[int, list[str]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    def __call__(self, unit: Unit, parts: Sequence[PartResult]) -> None:
        assert unit.index not in self.parts, "completed twice"
        self.order.append(unit.index)
        self.parts[unit.index] = [part.group for part in parts]


class Recorded:
    """Records the events of a run, and checks that they are consistent.

    Attributes:
        workers: state of each worker: `hired`, `ready`, `lost` or `dismissed`.
        parts: finished units by group.
        doomed: units given up.
        sizes: successive target sizes of each pool.
    """

    def __init__(self) -> None:
        self.workers: dict[int, str] = {}
        self.parts: Counter[str] = Counter()
        self.doomed: set[int] = set()
        self.sizes: dict[str, list[int]] = {}
        self._has: dict[int, deque[tuple[int, str, int]]] = {}

    def __call__(self, event: RunEvent) -> None:
        match event:
            case WorkerHired(worker):
                assert worker not in self.workers
                self.workers[worker] = "hired"
                self._has[worker] = deque()
            case WorkerReady(worker, _, node):
                assert (self.workers[worker], node) == ("hired", "here")
                self.workers[worker] = "ready"
            case UnitSent(unit, group, worker, attempt):
                assert self.workers[worker] == "ready"
                self._has[worker].append((unit.index, group, attempt))
            case UnitStaged(unit, group, worker, attempt, _, seconds):
                assert self._has[worker].popleft() == (unit.index, group, attempt)
                assert seconds > 0
                self.parts[group] += 1
            case UnitFailed(unit, group, worker, attempt):
                assert self._has[worker].popleft() == (unit.index, group, attempt)
            case WorkerLost(worker, unit=at):
                self.workers[worker] = "lost"
                had = self._has.pop(worker)
                assert (had[0][0] if had else None) == (at.index if at else None)
            case UnitGivenUp(unit):
                self.doomed.add(unit.index)
            case WorkerDismissed(worker):
                assert self.workers[worker] in {"hired", "ready"}
                self.workers[worker] = "dismissed"
            case PoolResized(group, size):
                self.sizes.setdefault(group, []).append(size)
