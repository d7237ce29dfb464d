"""What the scheduler needs of those who do the work: Ray actors (`pipeline.labelling.on_ray`), or simulated ones."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.corpus.plan import Unit
from pipeline.labelling.workers.worker import PartResult


class Kind(enum.Enum):
    """What happened to a worker."""

    READY = "ready"  # it has built its scorers
    DONE = "done"  # it finished the first of its units
    FAILED = "failed"  # the first of its units raised; the worker lives
    DIED = "died"  # the worker is gone, with all that it was given


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a worker.

    Attributes:
        kind, worker: what, and to whom.
        part: set when DONE.
        error: without text of the corpus, when FAILED or DIED.
        node: where it is, when READY.
        with_node: when DIED, whether the machine went and took the worker with it.
    """

    kind: Kind
    worker: int
    part: PartResult | None = None
    error: str = ""
    node: str = ""
    with_node: bool = False


class Crew(Protocol):
    """The workers. They are named by numbers that are never used again, and do their units in the order given."""

    def hire(self, group: str) -> int:
        """Ask for a worker for a group; READY or DIED follows, when there is room for it."""
        ...

    def send(self, worker: int, unit: Unit, *, isolated: bool) -> None:
        """Give a ready worker a unit; DONE, FAILED or DIED follows.

        `isolated`: its records are tried one by one in a process of their own, and those that kill that process, hang
        or outgrow the memory are quarantined.
        """
        ...

    def dismiss(self, worker: int) -> None:
        """Kill a worker; no more is heard of it."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """What has happened, at once or after at most `timeout` seconds; may be empty."""
        ...

    def resources(self) -> Mapping[str, float]:
        """What the machines have in all, taken or not, such as `CPU` and `GPU`."""
        ...
