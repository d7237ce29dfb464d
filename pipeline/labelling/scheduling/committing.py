"""Several commits under way at once, so that the scheduler does not wait for an object store's round trips."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

from pipeline.corpus.plan import Unit
from pipeline.labelling.workers.worker import PartResult

Record = TypeVar("Record")

# Units that may wait for each thread before whoever brings one more has to wait too.
_WAITING_A_THREAD = 4


class Commits(Generic[Record]):
    """Commits units in threads; leave it, and all that was begun is done.

    Everything but `commit` itself happens in the thread that calls: `done` is called from `__call__`, `collect` and
    `drain` alone, and they alone raise what a commit raised.

    Args:
        commit: commits a unit whose parts are staged; called from several threads at once.
        done: told of each unit that is committed, in the order in which that became known.
        threads: commits under way at once.
    """

    def __init__(
        self,
        commit: Callable[[Unit, Sequence[PartResult]], Record],
        done: Callable[[Unit, Sequence[PartResult], Record], None],
        threads: int,
    ) -> None:
        self._commit = commit
        self._done = done
        self._most = threads * (1 + _WAITING_A_THREAD)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="commit")
        self._begun: dict[Future[Record], tuple[Unit, Sequence[PartResult]]] = {}
        self._finished: deque[Future[Record]] = deque()

    def __enter__(self) -> "Commits[Record]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # After an error, what has not begun is left out: its parts are orphans, which the next run stages anew.
        self._pool.shutdown(wait=True, cancel_futures=error is not None)

    def __call__(self, unit: Unit, parts: Sequence[PartResult]) -> None:
        """Begin to commit a unit; waits while too many others are under way.

        Raises:
            UserError, OSError: what the commit of another unit raised.
        """
        self.collect()
        while len(self._begun) >= self._most:
            wait(self._begun, return_when=FIRST_COMPLETED)
            self.collect()
        future = self._pool.submit(self._commit, unit, parts)
        self._begun[future] = (unit, parts)
        future.add_done_callback(self._finished.append)

    def collect(self) -> None:
        """Tell of the units committed by now.

        Raises:
            UserError, OSError: what a commit raised.
        """
        while self._finished:
            future = self._finished.popleft()
            unit, parts = self._begun.pop(future)
            self._done(unit, parts, future.result())

    def drain(self) -> None:
        """Wait until all is committed.

        Raises:
            UserError, OSError: what a commit raised.
        """
        while self._begun:
            self.collect()
            wait(list(self._begun), return_when=FIRST_COMPLETED)
            self.collect()
