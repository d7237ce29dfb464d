"""Run the command of a job only to the end of its checks, such as before the job is submitted to run elsewhere."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Rehearsal:
    """How far to check.

    Attributes:
        files: whether the job will see the files of this machine, so that inputs and output are checked too.
        cluster: whether the place starts or joins a Ray cluster for the job.
        ranks: processes of `phf train`, where the place decides that; None for as many as its options say.
    """

    files: bool = True
    cluster: bool = False
    ranks: int | None = None


class ChecksPassed(Exception):  # noqa: N818 - no error
    """All checks of a command have passed, and its work would begin now.

    Attributes:
        output: absolute path or URI of what the job writes.
        tasks: for a job of several runs, the name of each and the words of its command after `phf`.
    """

    def __init__(self, output: str, tasks: Sequence[tuple[str, Sequence[str]]] = ()) -> None:
        super().__init__(output)
        self.output, self.tasks = output, tasks


_current: ContextVar[Rehearsal | None] = ContextVar("rehearsal", default=None)


def current_rehearsal() -> Rehearsal | None:
    """Return the rehearsal that this is; None in a command that does its work.

    A command asks where its checks are done, and raises `ChecksPassed` in a rehearsal.
    """
    return _current.get()


def rehearse(command: Callable[[], object], rehearsal: Rehearsal) -> ChecksPassed:
    """Run a command until its checks have passed.

    Raises:
        UserError: a check of the command has failed.
    """
    before = _current.set(rehearsal)
    try:
        command()
    except ChecksPassed as passed:
        return passed
    finally:
        _current.reset(before)
    raise AssertionError("a command that can be rehearsed raises ChecksPassed")
