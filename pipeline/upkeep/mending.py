"""What a repair does, step by step, guarded by its epoch; or, for `--dry-run`, what it would do."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.checking.problems import Problem
from pipeline.job.epoch import Epoch
from pipeline.storage.base import Storage


@dataclass(frozen=True)
class Step:
    """A file that was mended, or would be, and how."""

    path: str
    what: str


@dataclass
class Mending:
    """A repair that is going on.

    Attributes:
        storage: the dataset.
        epoch: this repair's claim to it; None where nothing is to be changed.
        done: what was done.
        left: what cannot be mended, and why.
    """

    storage: Storage
    epoch: Epoch | None
    done: list[Step] = field(default_factory=list)
    left: list[Problem] = field(default_factory=list)

    def do(self, path: str, what: str, act: Callable[[], object]) -> None:
        """Take a durable step, unless a newer run has taken over.

        Raises:
            StoppedError: a newer run has claimed the output.
            OSError: the storage fails.
        """
        if self.epoch is not None:
            self.epoch.check()
            act()
        self.done.append(Step(path, what))

    def leave(self, path: str, why: str) -> None:
        """A file cannot be mended."""
        self.left.append(Problem(path, why))
