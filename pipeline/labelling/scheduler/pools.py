"""Track the workers of all pools: which can take a unit, which are overdue, and how many there should be."""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.corpus.plan import Unit
from pipeline.labelling.scheduler.autoscaling import (
    Load,
    Pool,
    missing_resources,
    most_workers,
    spare_workers,
    wanted_workers,
)
from pipeline.labelling.scheduler.backend import Backend
from pipeline.labelling.scheduler.events import Observer, PoolResized, WorkerDismissed, WorkerHired, WorkerReady

# Units a worker holds: the one it works on, and the next one, so that it does not wait for the driver.
QUEUED = 2
# Seconds between two resizes of the pools, and the idle time after which a pool above its minimum drops a worker.
_RESIZE_INTERVAL_S = 5.0
_IDLE_S = 60.0
# Seconds without a ready worker after which a pool is reported as waiting, and seconds between further reports.
_WAITING_S = 30.0
_WAITING_REPEAT_S = 600.0


@dataclass(slots=True)
class Worker:
    """A worker of a pool.

    Attributes:
        ready: its scorers are built.
        since: when it began the first of its units, or when it became idle.
        units: the units it holds, in order.
    """

    group: str
    ready: bool = False
    since: float = 0.0
    units: deque[Unit] = field(default_factory=deque)


class WorkerPools:
    """Keeps every pool at its target size. Only `resize` and `late` take time proportional to the number of workers.

    Args:
        backend: starts and stops the workers.
        pools: by group; the first is the base group.
        observer: gets the events of workers and pools.
        notify: gets a message for the user when a pool waits for room in the cluster.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        backend: Backend,
        pools: Mapping[str, Pool],
        *,
        observer: Observer,
        notify: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._pools = dict(pools)
        self._observe = observer
        self._notify = notify
        self._clock = clock
        self._workers: dict[int, Worker] = {}
        self._counts = dict.fromkeys(pools, 0)
        self._target = dict.fromkeys(pools, 0)
        # Workers that are not ready, and ready workers by the number of their units; each in order of arrival there.
        self._starting: dict[str, OrderedDict[int, None]] = {group: OrderedDict() for group in pools}
        self._free: dict[str, list[OrderedDict[int, None]]] = {
            group: [OrderedDict() for _ in range(QUEUED)] for group in pools
        }
        self._busy = 0
        self._resize_at = 0.0
        self._began = clock()
        self._warn_at = dict.fromkeys(pools, self._began + _WAITING_S)

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, number: int) -> bool:
        return number in self._workers

    def __getitem__(self, number: int) -> Worker:
        return self._workers[number]

    @property
    def busy(self) -> int:
        """Workers that have a unit."""
        return self._busy

    def count(self, group: str) -> int:
        """Workers of a group, including those that are not ready yet."""
        return self._counts[group]

    def start(self) -> None:
        """Hire the first workers: the maximum for the base group, the minimum for every other."""
        most = most_workers(self._pools, self._backend.resources())
        for index, (group, pool) in enumerate(self._pools.items()):
            self._set_target(group, most[group] if index == 0 else pool.minimum)
        self._resize_at = self._clock() + _RESIZE_INTERVAL_S

    def ready(self, number: int, node: str) -> None:
        """Mark a worker as ready: it has built its scorers."""
        worker = self._workers[number]
        worker.ready = True
        worker.since = self._clock()
        del self._starting[worker.group][number]
        self._free[worker.group][0][number] = None
        self._observe(WorkerReady(number, worker.group, node))

    def next(self, group: str, having: int) -> int | None:
        """A worker that holds `having` units and can take another, or None.

        Among idle workers, the one that finished last, so that the others stay idle and can be dropped. Among busy
        ones, the one that began first.
        """
        free = self._free[group][having]
        return next(reversed(free) if having == 0 else iter(free), None)

    def give(self, number: int, unit: Unit) -> None:
        """Add a unit to those that a worker holds."""
        worker = self._workers[number]
        free = self._free[worker.group]
        had = len(worker.units)
        del free[had][number]
        if had == 0:
            worker.since = self._clock()
            self._busy += 1
        worker.units.append(unit)
        if had + 1 < QUEUED:
            free[had + 1][number] = None

    def take(self, number: int) -> tuple[Unit, float]:
        """Remove the first unit of a worker that has finished it; return the unit and the seconds it took."""
        worker = self._workers[number]
        free = self._free[worker.group]
        had = len(worker.units)
        if had < QUEUED:
            del free[had][number]
        unit = worker.units.popleft()
        free[had - 1][number] = None
        if had == 1:
            self._busy -= 1
        now = self._clock()
        seconds, worker.since = now - worker.since, now
        return unit, seconds

    def remove(self, number: int) -> Worker:
        """Remove a worker that is gone or about to be dismissed; `refill` replaces it."""
        worker = self._workers.pop(number)
        self._counts[worker.group] -= 1
        if not worker.ready:
            del self._starting[worker.group][number]
        elif len(worker.units) < QUEUED:
            del self._free[worker.group][len(worker.units)][number]
        if worker.units:
            self._busy -= 1
        return worker

    def dismiss(self, number: int) -> None:
        """Kill a worker and drop its units."""
        worker = self.remove(number)
        self._backend.dismiss(number)
        self._observe(WorkerDismissed(number, worker.group))

    def dismiss_idle(self) -> None:
        """Dismiss all workers without a unit."""
        for number in [number for number, worker in self._workers.items() if not worker.units]:
            self.dismiss(number)

    def dismiss_all(self) -> None:
        """Dismiss all workers."""
        for number in list(self._workers):
            self.dismiss(number)

    def refill(self, group: str) -> None:
        """Hire workers until a group has its target size."""
        while self._counts[group] < self._target[group]:
            number = self._backend.hire(group)
            self._workers[number] = Worker(group)
            self._starting[group][number] = None
            self._counts[group] += 1
            self._observe(WorkerHired(number, group))

    def late(self, allowed_s: Callable[[Worker], float]) -> list[int]:
        """Workers whose current unit has taken more seconds than `allowed_s` returns for them."""
        now = self._clock()
        return [n for n, each in self._workers.items() if each.units and now - each.since > allowed_s(each)]

    def resize(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Every few seconds, adapt to the cluster's resources, grow a pool that is a bottleneck, shrink an idle one.

        Args:
            waiting: returns the number of units that wait for a worker of each group.
        """
        now = self._clock()
        if now < self._resize_at:
            return
        self._resize_at = now + _RESIZE_INTERVAL_S
        resources = self._backend.resources()
        most = most_workers(self._pools, resources)
        backlog = waiting()
        for group, pool in self._pools.items():
            load = Load(self._counts[group], len(self._starting[group]), len(self._free[group][0]), backlog[group])
            spare = spare_workers(group, self._pools, self._counts, resources)
            wanted = wanted_workers(load, most[group], spare)
            if wanted >= load.workers:
                wanted = max(pool.minimum, wanted - self._count_idle(group, now))
            self._set_target(group, wanted)
        self._warn_if_waiting(now, resources)

    def _set_target(self, group: str, wanted: int) -> None:
        if wanted != self._target[group]:
            self._target[group] = wanted
            self._observe(PoolResized(group, wanted))
        # Busy workers may finish; a pool that is too large loses them once they are idle.
        surplus = self._counts[group] - wanted
        for each in (self._starting[group], self._free[group][0]):
            for number in list(each)[: max(0, surplus)]:
                self.dismiss(number)
                surplus -= 1
        self.refill(group)

    def _count_idle(self, group: str, now: float) -> int:
        idle = 0
        for number in self._free[group][0]:
            if now - self._workers[number].since < _IDLE_S:
                break
            idle += 1
        return idle

    def _warn_if_waiting(self, now: float, resources: Mapping[str, float]) -> None:
        for group in self._pools:
            starting = len(self._starting[group])
            if starting < self._counts[group] or not starting:
                self._warn_at[group] = now + _WAITING_S
            elif now >= self._warn_at[group]:
                self._warn_at[group] = now + _WAITING_REPEAT_S
                missing = missing_resources(self._pools, resources).get(group)
                why = (
                    f": {missing} is more than the other pools leave in the cluster"
                    if missing
                    else ": either Ray has found no room for one, or its scorers are slow to load"
                )
                self._notify(
                    f"The pool {group} is still waiting for its first worker{why}. The job continues once it starts."
                )
