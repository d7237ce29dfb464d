"""The scheduler's interface to its workers: Ray actors, a process of this machine, or a simulation."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.corpus.plan import Unit
from pipeline.labelling.workers.labelling_process import Failed, NotStarted, Started
from pipeline.labelling.workers.worker import PartResult
from scorers.errors import UserError


class Kind(enum.Enum):
    """The kinds of events."""

    READY = "ready"  # the worker has built its scorers
    DONE = "done"  # it has finished the first of its units
    FAILED = "failed"  # the first of its units raised; the worker is still alive
    DIED = "died"  # the worker is gone, and so are its units


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a worker.

    Attributes:
        kind, worker: what happened, and the worker's number.
        part: set for DONE.
        error: set for FAILED and DIED; contains no text of the corpus.
        node: the worker's machine, for READY.
        with_node: for DIED, whether the worker was lost because its machine was.
    """

    kind: Kind
    worker: int
    part: PartResult | None = None
    error: str = ""
    node: str = ""
    with_node: bool = False


def event_of(worker: int, answer: Started | NotStarted | Failed | PartResult, fingerprints: Mapping[str, str]) -> Event:
    """Turn a worker's answer into an event.

    Args:
        worker: the worker's number.
        answer: of a `LabellingProcess`.
        fingerprints: what the fingerprints of its scorers must be, by column.

    Raises:
        UserError: its scorers cannot be built, or are not those of the job.
    """
    match answer:
        case PartResult():
            return Event(Kind.DONE, worker, part=answer)
        case Failed():
            return Event(Kind.FAILED, worker, error=answer.error)
        case NotStarted():
            raise UserError(f"The scorers cannot start on {answer.node}: {answer.error}.")
    for column, fingerprint in answer.fingerprints.items():
        if fingerprint != fingerprints[column]:
            raise UserError(
                f"The scorer {column!r} on {answer.node} is not the one of this job: its fingerprint is {fingerprint}, "
                f"not {fingerprints[column]}. Install the same versions of its libraries and the same weights on all "
                "machines."
            )
    return Event(Kind.READY, worker, node=answer.node)


class Backend(Protocol):
    """Starts and stops workers and sends them units.

    Workers have numbers, which are never reused, and process their units in the order in which they were sent.
    """

    def hire(self, group: str) -> int:
        """Request a worker for a group; READY or DIED follows once the cluster has room for it."""
        ...

    def send(self, worker: int, unit: Unit, *, isolated: bool) -> None:
        """Send a unit to a ready worker; DONE, FAILED or DIED follows.

        Args:
            worker: number of the worker.
            unit: the unit to label.
            isolated: try its records one by one in a child process, and quarantine those that kill the process, hang
                or exceed the memory limit.
        """
        ...

    def dismiss(self, worker: int) -> None:
        """Kill a worker; no further events name it."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Return new events, after at most `timeout` seconds; may be empty."""
        ...

    def resources(self) -> Mapping[str, float]:
        """The cluster's total resources, in use or not, such as `CPU` and `GPU`."""
        ...
