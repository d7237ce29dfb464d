"""What happens in a run, as data: for logs, metrics, figures and tests, which need know nothing else.

An observer is a callable that takes an event. It is called in the scheduler's thread, between two of its steps: be
quick, and raise nothing. Workers are numbers that are never used again; `group` names their pool; attempts of a unit
count from 1 in each group. No `error` holds text of the corpus.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.corpus.plan import Unit
from pipeline.job.unit_records import UnitRecord
from pipeline.labelling.workers.worker import PartResult


@dataclass(frozen=True, slots=True)
class WorkerHired:
    """A worker is asked for; it may wait for a place in the cluster."""

    worker: int
    group: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker has built its scorers, on the node of that name."""

    worker: int
    group: str
    node: str


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died, was killed over a deadline or went with its node.

    Attributes:
        unit: the one it was at.
        counted: whether that has used up an attempt of the unit, which a node's death does not.
    """

    worker: int
    group: str
    error: str
    unit: Unit | None
    counted: bool


@dataclass(frozen=True, slots=True)
class WorkerDismissed:
    """A worker is let go in good order: its pool shrinks, or the run ends."""

    worker: int
    group: str


@dataclass(frozen=True, slots=True)
class PoolResized:
    """A pool is to have another number of workers from now on."""

    group: str
    workers: int


@dataclass(frozen=True, slots=True)
class UnitSent:
    """A worker is given a unit: a second one waits behind its first.

    Attributes:
        isolated: a worker was lost over the unit before, so that its records are tried one by one in a child process.
    """

    unit: Unit
    group: str
    worker: int
    attempt: int
    isolated: bool


@dataclass(frozen=True, slots=True)
class UnitStaged:
    """A part of a unit is staged; `seconds` from when the worker could begin it."""

    unit: Unit
    group: str
    worker: int
    attempt: int
    part: PartResult
    seconds: float


@dataclass(frozen=True, slots=True)
class UnitFailed:
    """A unit raised; its worker lives, and the attempt is used up."""

    unit: Unit
    group: str
    worker: int
    attempt: int
    error: str


@dataclass(frozen=True, slots=True)
class UnitGivenUp:
    """A unit has used up its attempts and is not tried again in this run."""

    unit: Unit
    group: str
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class UnitCommitted:
    """A unit has its commit record, and its parts are in place."""

    unit: Unit
    record: UnitRecord
    parts: Sequence[PartResult]


@dataclass(frozen=True, slots=True)
class Tick:
    """Another second, about: figures of the run may be written down."""


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


def to_all(*observers: Observer) -> Observer:
    """One observer that passes each event on to several, in order."""

    def observe(event: RunEvent) -> None:
        for observer in observers:
            observer(event)

    return observe
