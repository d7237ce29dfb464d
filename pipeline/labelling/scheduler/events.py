"""The events of a run, as data for logs, metrics, progress and tests.

An observer is a callable that takes an event. The scheduler calls it in its own thread between two steps, so it must
be fast and must not raise. Worker numbers are never reused; `group` names the worker's pool; attempts of a unit count
from 1 in each group. No `error` contains text of the corpus.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.corpus.plan import Unit
from pipeline.job.unit_records import UnitRecord
from pipeline.labelling.workers.worker import PartResult


@dataclass(frozen=True, slots=True)
class WorkerHired:
    """A worker has been requested; it may have to wait for room in the cluster."""

    worker: int
    group: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker on `node` has built its scorers."""

    worker: int
    group: str
    node: str


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died, was killed at a deadline, or was lost with its node.

    Attributes:
        unit: the unit it was labelling.
        counted: whether this used up an attempt of the unit; the loss of a node does not.
    """

    worker: int
    group: str
    error: str
    unit: Unit | None
    counted: bool


@dataclass(frozen=True, slots=True)
class WorkerDismissed:
    """A worker was stopped in an orderly way because its pool shrank or the run ended."""

    worker: int
    group: str


@dataclass(frozen=True, slots=True)
class PoolResized:
    """The target size of a pool has changed."""

    group: str
    workers: int


@dataclass(frozen=True, slots=True)
class UnitSent:
    """A unit was sent to a worker; a second one waits behind the first.

    Attributes:
        isolated: an earlier worker was lost while labelling the unit, so its records are tried one by one in a child
            process.
    """

    unit: Unit
    group: str
    worker: int
    attempt: int
    isolated: bool


@dataclass(frozen=True, slots=True)
class UnitStaged:
    """A part of a unit is staged; `seconds` count from when the worker was free to begin it."""

    unit: Unit
    group: str
    worker: int
    attempt: int
    part: PartResult
    seconds: float


@dataclass(frozen=True, slots=True)
class UnitFailed:
    """A unit raised an exception; the worker is still alive, and the attempt is used up."""

    unit: Unit
    group: str
    worker: int
    attempt: int
    error: str


@dataclass(frozen=True, slots=True)
class UnitGivenUp:
    """A unit has used up its attempts and will not be tried again in this run."""

    unit: Unit
    group: str
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class UnitCommitted:
    """A unit's record is written and its parts are in place."""

    unit: Unit
    record: UnitRecord
    parts: Sequence[PartResult]


@dataclass(frozen=True, slots=True)
class Tick:
    """About a second has passed: time to publish figures."""


RunEvent = (
    WorkerHired
    | WorkerReady
    | WorkerLost
    | WorkerDismissed
    | PoolResized
    | UnitSent
    | UnitStaged
    | UnitFailed
    | UnitGivenUp
    | UnitCommitted
    | Tick
)
Observer = Callable[[RunEvent], None]


def combine_observers(*observers: Observer) -> Observer:
    """Combine several observers into one that calls them in order."""

    def observe(event: RunEvent) -> None:
        for observer in observers:
            observer(event)

    return observe
