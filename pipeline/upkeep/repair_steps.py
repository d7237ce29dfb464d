"""Execute the steps of a repair, guarded by its epoch, and record them; `--dry-run` only records them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.checking.problems import Problem
from pipeline.job.epoch import Epoch
from pipeline.storage.base import Storage


@dataclass(frozen=True)
class Step:
    """A file that was, or would be, repaired, and how."""

    path: str
    what: str


@dataclass
class Repairs:
    """The steps of a repair in progress.

    Attributes:
        storage: the dataset.
        epoch: this repair's claim to the dataset; None for a dry run.
        done: the steps taken.
        left: the files that cannot be repaired, and why.
    """

    storage: Storage
    epoch: Epoch | None
    done: list[Step] = field(default_factory=list)
    left: list[Problem] = field(default_factory=list)

    def do(self, path: str, what: str, act: Callable[[], object]) -> None:
        """Take a step and record it; in a dry run, only record it.

        Raises:
            StoppedError: a newer run has claimed the output.
            OSError: the storage fails.
        """
        if self.epoch is not None:
            self.epoch.check()
            act()
        self.done.append(Step(path, what))

    def leave(self, path: str, why: str) -> None:
        """Record a file that cannot be repaired."""
        self.left.append(Problem(path, why))
