"""Commit a unit exactly once: write the record if absent, then move the parts.

A worker stages a part and returns its size and hash. Only the driver commits, in two steps: it creates the unit's
record (create-if-absent; this is the commit point), then moves the parts that the record names into place. If it dies
in between, the record exists and the parts are still staged; `recover` moves them.

Commits run in several threads, so that the scheduler does not wait for an object store's round trips.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.plan import Unit
from pipeline.corpus.records import Quarantined
from pipeline.job.epoch import Epoch, create
from pipeline.job.unit_records import PartFile, UnitRecord
from pipeline.job.unit_store import FOLDER_UNITS, UnitStore
from pipeline.labelling.workers.worker import PartResult
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import to_checked
from pipeline.storage.failpoints import failpoint
from scorers.errors import IncompleteError
from scorers.shell import phf

Record = TypeVar("Record")

# Units that may queue per thread before the caller has to wait.
_QUEUED_PER_THREAD = 4


class Commits(Generic[Record]):
    """Commits units in threads; leaving the context waits for the commits in progress.

    Only `commit` runs in those threads: `__call__`, `collect` and `drain` call `done`, and re-raise the exceptions of
    commits, in the caller's thread.

    Args:
        commit: commits a unit whose parts are staged; called from several threads at once.
        done: called for each committed unit, in order of completion.
        threads: number of concurrent commits.
    """

    def __init__(
        self,
        commit: Callable[[Unit, Sequence[PartResult]], Record],
        done: Callable[[Unit, Sequence[PartResult], Record], None],
        threads: int,
    ) -> None:
        self._commit = commit
        self._done = done
        self._most = threads * (1 + _QUEUED_PER_THREAD)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="commit")
        self._begun: dict[Future[Record], tuple[Unit, Sequence[PartResult]]] = {}
        self._finished: deque[Future[Record]] = deque()

    def __enter__(self) -> "Commits[Record]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # After an error, cancel queued commits: their parts become orphans, and the next run stages them anew.
        self._pool.shutdown(wait=True, cancel_futures=error is not None)

    def __call__(self, unit: Unit, parts: Sequence[PartResult]) -> None:
        """Queue a unit for commit; blocks while too many are queued.

        Raises:
            UserError, OSError: the commit of another unit failed.
        """
        self.collect()
        while len(self._begun) >= self._most:
            wait(self._begun, return_when=FIRST_COMPLETED)
            self.collect()
        future = self._pool.submit(self._commit, unit, parts)
        self._begun[future] = (unit, parts)
        future.add_done_callback(self._finished.append)

    def collect(self) -> None:
        """Call `done` for the units committed so far.

        Raises:
            UserError, OSError: a commit failed.
        """
        while self._finished:
            future = self._finished.popleft()
            unit, parts = self._begun.pop(future)
            self._done(unit, parts, future.result())

    def drain(self) -> None:
        """Wait until all queued units are committed.

        Raises:
            UserError, OSError: a commit failed.
        """
        while self._begun:
            self.collect()
            wait(list(self._begun), return_when=FIRST_COMPLETED)
            self.collect()


class Committer:
    """Commits units of a layer under an epoch. Threads may commit different units concurrently."""

    def __init__(self, epoch: Epoch, store: UnitStore) -> None:
        self.epoch = epoch
        self.store = store
        # Units still missing from each full folder; filled by `recover`.
        self._missing: dict[int, int] = {}
        self._lock = threading.Lock()

    def commit(self, unit: Unit, parts: Sequence[PartResult]) -> UnitRecord:
        """Commit a unit whose parts, one per group and the base group first, are all staged.

        Returns:
            The unit's record: this driver's, or an older driver's that was created first.

        Raises:
            StoppedError: a newer driver has claimed the output.
            IncompleteError: a staged part is missing or truncated.
            OSError: the storage fails.
        """
        storage = self.epoch.storage
        for part in parts:
            self._check_staged(part)
        self.epoch.check()
        record = self._record(unit, parts)
        if not create(storage, self.store.record_path(unit.index), to_checked(record)):
            record = self.store.read(unit.index)
        failpoint("record-created")
        self._move_parts(record)
        self._count(unit.index)
        return record

    def recover(self, units: int, groups: Sequence[str]) -> NDArray[np.bool_]:
        """Finish the commits of a dead driver; return which of the plan's units are committed, bool [units].

        Raises:
            IncompleteError: a part of a committed unit is missing.
            OSError: the storage fails.
        """
        committed, in_place = self.store.listing(units)
        segments = self.store.segments()
        for folder in range(-(-units // FOLDER_UNITS)):
            if folder in segments:
                continue
            first = folder * FOLDER_UNITS
            there = committed[first : first + FOLDER_UNITS]
            for unit in (first + np.flatnonzero(there)).tolist():
                if not in_place.get(unit, set()).issuperset(groups):
                    self._move_parts(self.store.read(unit))
            if first + FOLDER_UNITS <= units:
                self._missing[folder] = int((~there).sum())
                if not self._missing[folder]:
                    self.store.write_segment(folder)
        return committed

    def _check_staged(self, part: PartResult) -> None:
        storage = self.epoch.storage
        size = storage.size(part.staged)
        if size != part.size:
            found = "is not there" if size is None else f"has {size} bytes, not {part.size}"
            raise IncompleteError(
                f"A worker staged {part.staged}, but below {storage.uri} it {found}. If workers run on other machines, "
                "the output must be a folder that all of them share, or an object store."
            )

    def _record(self, unit: Unit, parts: Sequence[PartResult]) -> UnitRecord:
        base = parts[0]
        quarantined: dict[tuple[str, int], Quarantined] = {}
        for part in parts:
            for each in part.quarantined:
                quarantined.setdefault((each.source, each.position), each)
        return UnitRecord(
            unit=unit.index,
            epoch=self.epoch.number,
            parts=[
                PartFile(
                    group=part.group,
                    staged=part.staged,
                    path=self.store.part_path(unit.index, part.group),
                    size=part.size,
                    sha256=part.sha256,
                    rows=part.rows,
                )
                for part in parts
            ],
            records=base.records,
            empty=base.empty,
            sentences=base.sentences,
            bytes_text=base.bytes_text,
            quarantined=list(quarantined.values()),
        )

    def _move_parts(self, record: UnitRecord) -> None:
        for part in record.parts:
            try:
                self.epoch.storage.move(part.staged, part.path)
            except FileNotFoundError:
                raise IncompleteError(describe_lost_part(self.epoch.storage, record, part)) from None
            failpoint("part-moved")

    def _count(self, unit: int) -> None:
        folder = unit // FOLDER_UNITS
        with self._lock:
            if folder not in self._missing:
                return
            self._missing[folder] -= 1
            complete = not self._missing[folder]
        if complete:
            self.store.write_segment(folder)


def describe_lost_part(storage: Storage, record: UnitRecord, part: PartFile) -> str:
    """The message for a committed part that is neither staged nor in its place."""
    return (
        f"{storage.uri} is damaged: unit {record.unit:08d} is committed, but {part.path} is missing. "
        f"`{phf('repair', storage.uri)}` labels it again."
    )
