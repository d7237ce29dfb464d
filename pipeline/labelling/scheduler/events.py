"""What the scheduler tells of its work while it goes: for logs, metrics and tests, which need know nothing else."""

from pipeline.corpus.plan import Unit
from pipeline.labelling.workers.worker import PartResult


class Observer:
    """Is told what happens to workers and units; this one does nothing. Derive from it what you are curious about.

    Every method is called in the scheduler's thread, between two of its steps: be quick, and raise nothing. Workers are
    numbers that are never used again; `group` names their pool; attempts of a unit count from 1 in each group. No
    `error` holds text of the corpus.
    """

    def hired(self, worker: int, group: str) -> None:
        """A worker is asked for; it may wait for a place in the cluster."""

    def ready(self, worker: int, group: str, node: str) -> None:
        """A worker has built its scorers, on the node of that name."""

    def sent(self, unit: Unit, group: str, worker: int, attempt: int, *, isolated: bool) -> None:
        """A worker is given a unit: a second one waits behind its first.

        `isolated`: a worker was lost over the unit before, so that its records are tried one by one in a child process.
        """

    def done(self, unit: Unit, group: str, worker: int, attempt: int, part: PartResult, seconds: float) -> None:
        """A part of a unit is staged; `seconds` from when the worker could begin it."""

    def failed(self, unit: Unit, group: str, worker: int, attempt: int, error: str) -> None:
        """A unit raised; its worker lives, and the attempt is used up."""

    def lost(self, worker: int, group: str, error: str, *, unit: Unit | None, counted: bool) -> None:
        """A worker died, was killed over a deadline or went with its node.

        `unit`: the one it was at. `counted`: whether that has used up an attempt of the unit, which a node's death
        does not.
        """

    def given_up(self, unit: Unit, group: str, attempts: int, error: str) -> None:
        """A unit has used up its attempts and is not tried again in this run."""

    def dismissed(self, worker: int, group: str) -> None:
        """A worker is let go in good order: its pool shrinks, or the run ends."""

    def resized(self, group: str, workers: int) -> None:
        """A pool is to have another number of workers from now on."""
