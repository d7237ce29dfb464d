"""How a unit becomes part of the dataset, exactly once, whoever dies when.

A worker stages a part and returns its size and hash. The driver, and nobody else, commits it in two steps: it creates
the unit's record (create-if-absent: the commit point), then moves the parts that the record names to their place. A
driver that dies between the two leaves a record whose parts are still staged; `recover` moves them.

Several commits under way at once, so that the scheduler does not wait for an object store's round trips.
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
from pipeline.job.units import FOLDER_UNITS, UnitStore
from pipeline.labelling.workers.worker import PartResult
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import to_checked
from pipeline.storage.failpoints import failpoint
from scorers.errors import IncompleteError
from scorers.shell import phf

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


class Committer:
    """Commits units of a layer in the name of an epoch. Several threads may commit at once, each its own units."""

    def __init__(self, epoch: Epoch, store: UnitStore) -> None:
        self.epoch = epoch
        self.store = store
        # Units that a full folder still lacks, by folder; known once `recover` has looked.
        self._missing: dict[int, int] = {}
        self._lock = threading.Lock()

    def commit(self, unit: Unit, parts: Sequence[PartResult]) -> UnitRecord:
        """Commit a unit whose parts, one a group and the base group first, are all staged.

        Returns:
            The unit's record: this driver's, or that of an older driver that was quicker by a moment.

        Raises:
            StoppedError: a newer driver has claimed the output.
            IncompleteError: a staged part is not there, or not whole.
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
        """Which of the plan's units are committed, bool [units]; finishes what a dead driver had begun.

        Raises:
            IncompleteError: a part of a committed unit is lost.
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
                f"A worker staged {part.staged}, but below {storage.uri} it {found}. Where workers run on other "
                "machines, the output must be a folder that all of them share, or an object store."
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
    """What to tell of a committed part that is neither staged nor in its place."""
    return (
        f"{storage.uri} is damaged: unit {record.unit:08d} is committed, but {part.path} is missing. "
        f"`{phf('repair', storage.uri)}` has it labelled again."
    )
