"""The workers of all pools: who can take a unit, who is late, and how many there should be as the cluster changes."""

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
from pipeline.labelling.scheduler.backend import Crew
from pipeline.labelling.scheduler.events import Observer, PoolResized, WorkerDismissed, WorkerHired, WorkerReady

# Units a worker is given at once: the one it works on, and one that spares it the wait for the driver.
QUEUED = 2
# Seconds between looks at what the cluster has and what each pool has to do, and those after which a worker that
# nothing was given to is let go, if its pool may shrink.
_RESIZE_EVERY_S = 5.0
_IDLE_S = 60.0
# Seconds without a single worker after which a pool is said to wait, and again every so often.
_WAITING_S = 30.0
_WAITING_AGAIN_S = 600.0


@dataclass(slots=True)
class Worker:
    """A worker of a pool.

    Attributes:
        ready: its scorers are built.
        since: when it began the first of its units, or when it ran out of them.
        units: that it was given and has not answered, in order.
    """

    group: str
    ready: bool = False
    since: float = 0.0
    units: deque[Unit] = field(default_factory=deque)


class Workforce:
    """Keeps every pool at its size. No method but `resize` and `late` takes time proportional to the workers.

    Args:
        crew: whom to hire from.
        pools: by group; the first is the base group.
        observer: gets the events of workers and pools.
        notify: told, in a sentence for people, when a pool waits for a place in the cluster.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        crew: Crew,
        pools: Mapping[str, Pool],
        *,
        observer: Observer,
        notify: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._crew = crew
        self._pools = dict(pools)
        self._observe = observer
        self._notify = notify
        self._clock = clock
        self._workers: dict[int, Worker] = {}
        self._counts = dict.fromkeys(pools, 0)
        self._target = dict.fromkeys(pools, 0)
        # Not ready yet; and ready ones by the number of units they have, each in the order in which they came to that.
        self._starting: dict[str, OrderedDict[int, None]] = {group: OrderedDict() for group in pools}
        self._free: dict[str, list[OrderedDict[int, None]]] = {
            group: [OrderedDict() for _ in range(QUEUED)] for group in pools
        }
        self._busy = 0
        self._resize_at = 0.0
        self._began = clock()
        self._complain_at = dict.fromkeys(pools, self._began + _WAITING_S)

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
        """Workers of a group, those included that are not ready."""
        return self._counts[group]

    def start(self) -> None:
        """Hire the first workers: the base group as many as there may be, every other as few."""
        most = most_workers(self._pools, self._crew.resources())
        for index, (group, pool) in enumerate(self._pools.items()):
            self._set_target(group, most[group] if index == 0 else pool.least)
        self._resize_at = self._clock() + _RESIZE_EVERY_S

    def ready(self, number: int, node: str) -> None:
        """A worker has built its scorers."""
        worker = self._workers[number]
        worker.ready = True
        worker.since = self._clock()
        del self._starting[worker.group][number]
        self._free[worker.group][0][number] = None
        self._observe(WorkerReady(number, worker.group, node))

    def next(self, group: str, having: int) -> int | None:
        """A worker that has so many units and can take another.

        Of those that have none, the one that was last to finish: so the others are seen to be idle. Of those that have
        some, the one that was first to begin.
        """
        free = self._free[group][having]
        return next(reversed(free) if having == 0 else iter(free), None)

    def give(self, number: int, unit: Unit) -> None:
        """Note that a worker has a unit more."""
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
        """A worker has done with the first of its units: the unit, and the seconds it took."""
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
        """Forget a worker that is gone, or that the caller lets go; `refill` hires another in its place."""
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
        """Let a worker go, and all that it has."""
        worker = self.remove(number)
        self._crew.dismiss(number)
        self._observe(WorkerDismissed(number, worker.group))

    def dismiss_idle(self) -> None:
        """Let everybody go who has no unit."""
        for number in [number for number, worker in self._workers.items() if not worker.units]:
            self.dismiss(number)

    def dismiss_all(self) -> None:
        """Let everybody go."""
        for number in list(self._workers):
            self.dismiss(number)

    def refill(self, group: str) -> None:
        """Hire for a group until it has as many workers as it should have."""
        while self._counts[group] < self._target[group]:
            number = self._crew.hire(group)
            self._workers[number] = Worker(group)
            self._starting[group][number] = None
            self._counts[group] += 1
            self._observe(WorkerHired(number, group))

    def late(self, allowed_s: Callable[[Worker], float]) -> list[int]:
        """Workers that have been at a unit for longer than they may."""
        now = self._clock()
        return [n for n, each in self._workers.items() if each.units and now - each.since > allowed_s(each)]

    def resize(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Every few seconds: follow the cluster, grow a pool that others wait for, shrink one that has been idle.

        Args:
            waiting: tells how many units wait for a worker of each group.
        """
        now = self._clock()
        if now < self._resize_at:
            return
        self._resize_at = now + _RESIZE_EVERY_S
        resources = self._crew.resources()
        most = most_workers(self._pools, resources)
        backlog = waiting()
        for group, pool in self._pools.items():
            load = Load(self._counts[group], len(self._starting[group]), len(self._free[group][0]), backlog[group])
            spare = spare_workers(group, self._pools, self._counts, resources)
            wanted = wanted_workers(load, most[group], spare)
            if wanted >= load.workers:
                wanted = max(pool.least, wanted - self._idle_for_long(group, now))
            self._set_target(group, wanted)
        self._complain(now, resources)

    def _set_target(self, group: str, wanted: int) -> None:
        if wanted != self._target[group]:
            self._target[group] = wanted
            self._observe(PoolResized(group, wanted))
        # Whoever works is left to finish; a worker of a pool that is too large goes once it has nothing to do.
        surplus = self._counts[group] - wanted
        for each in (self._starting[group], self._free[group][0]):
            for number in list(each)[: max(0, surplus)]:
                self.dismiss(number)
                surplus -= 1
        self.refill(group)

    def _idle_for_long(self, group: str, now: float) -> int:
        idle = 0
        for number in self._free[group][0]:
            if now - self._workers[number].since < _IDLE_S:
                break
            idle += 1
        return idle

    def _complain(self, now: float, resources: Mapping[str, float]) -> None:
        for group in self._pools:
            starting = len(self._starting[group])
            if starting < self._counts[group] or not starting:
                self._complain_at[group] = now + _WAITING_S
            elif now >= self._complain_at[group]:
                self._complain_at[group] = now + _WAITING_AGAIN_S
                missing = missing_resources(self._pools, resources).get(group)
                why = (
                    f": {missing} is more than the cluster has beside what other pools take"
                    if missing
                    else ": either Ray has found no place for one, or its scorers take long to load"
                )
                self._notify(f"The pool {group} still waits for its first worker{why}. The job goes on when it comes.")
