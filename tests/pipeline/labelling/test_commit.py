"""The commit protocol under crashes at every step, older drivers and lost files."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.plan import Unit
from pipeline.corpus.records import Quarantined
from pipeline.job.epoch import Epoch
from pipeline.job.unit_records import UnitRecord
from pipeline.job.unit_store import UnitStore
from pipeline.labelling.commit import Committer
from pipeline.labelling.workers.worker import PartResult
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from scorers.errors import IncompleteError, StoppedError

GROUPS = ["cpu", "toxicity"]


class CrashError(BaseException):
    """Stands for the end of the process."""


class CrashingStorage(LocalStorage):
    """Crashes before or after its n-th write."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self._at = at
        self._steps = 0

    def _step(self) -> None:
        self._steps += 1
        if self._steps == self._at:
            raise CrashError

    def put_if_absent(self, path: str, data: bytes) -> bool:
        self._step()
        created = super().put_if_absent(path, data)
        self._step()
        return created

    def move(self, source: str, target: str) -> None:
        self._step()
        super().move(source, target)
        self._step()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def storage(root: Path) -> Storage:
    return LocalStorage(root)


def stage(epoch: Epoch, unit: int, group: str = "cpu", quarantined: tuple[Quarantined, ...] = ()) -> PartResult:
    data = f"unit {unit}, group {group}".encode()
    path = f"{epoch.staging}/{unit}.{group}.parquet"
    with epoch.storage.open_write(path) as file:
        file.write(data)
    return PartResult(
        unit=unit,
        group=group,
        staged=path,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        rows=10 - len(quarantined),
        sentences=30,
        empty=1,
        bytes_text=500,
        records=10,
        quarantined=list(quarantined),
        seconds={},
    )


def committer(epoch: Epoch) -> Committer:
    return Committer(epoch, UnitStore(epoch.storage))


def commit(epoch: Epoch, unit: int) -> None:
    committer(epoch).commit(Unit(unit, ()), [stage(epoch, unit, group) for group in GROUPS])


def recover(storage_or_epoch: Storage | Epoch, units: int = 10) -> set[int]:
    epoch = Epoch.claim(storage_or_epoch) if isinstance(storage_or_epoch, Storage) else storage_or_epoch
    return set(np.flatnonzero(committer(epoch).recover(units, GROUPS)).tolist())


def committed_units(storage: Storage, units: int = 10) -> list[int]:
    committed: list[int] = np.flatnonzero(UnitStore(storage).committed(units)).tolist()
    return committed


def part_path(unit: int, group: str) -> str:
    return UnitStore(LocalStorage(Path("unused"))).part_path(unit, group)


def read_record(storage: Storage, unit: int) -> UnitRecord:
    return UnitStore(storage).read(unit)


def contents(storage: Storage) -> dict[str, bytes]:
    return {info.path: storage.read(info.path) for info in storage.list("units") if info.path.endswith(".parquet")}


def test_a_unit_is_its_record_and_its_parts(storage: Storage) -> None:
    epoch = Epoch.claim(storage)
    commit(epoch, 7)
    record = read_record(storage, 7)
    assert (record.unit, record.epoch, record.records, record.empty, record.sentences) == (7, 1, 10, 1, 30)
    assert [part.path for part in record.parts] == [part_path(7, group) for group in GROUPS]
    for part in record.parts:
        data = storage.read(part.path)
        assert (part.size, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert list(storage.list("staging")) == []
    assert list(committed_units(storage)) == [7]


def test_a_record_is_in_quarantine_once_for_the_first_group_that_put_it_there(storage: Storage) -> None:
    epoch = Epoch.claim(storage)
    base = (Quarantined("a", 3, "not-json"), Quarantined("a", 5, "deadline"))
    other = (Quarantined("a", 3, "not-json"), Quarantined("a", 5, "scorer-error"), Quarantined("b", 3, "scorer-error"))
    parts = [stage(epoch, 0, "cpu", base), stage(epoch, 0, "toxicity", other)]
    committer(epoch).commit(Unit(0, ()), parts)
    assert read_record(storage, 0).quarantined == [*base, other[2]]


@pytest.mark.parametrize("units", [1, 3])
def test_a_crash_at_any_step_loses_or_duplicates_no_committed_unit(root: Path, units: int) -> None:
    for at in itertools.count(1):
        folder = root / str(at)
        whole = LocalStorage(folder / "whole")
        epoch = Epoch.claim(whole)
        for unit in range(units):
            commit(epoch, unit)

        broken = CrashingStorage(folder / "broken", at)
        crashed = False
        try:
            epoch = Epoch.claim(broken)
            for unit in range(units):
                commit(epoch, unit)
        except CrashError:
            crashed = True
        storage = LocalStorage(folder / "broken")
        records = set(committed_units(storage))
        epoch = Epoch.claim(storage)
        assert recover(epoch) == records
        for unit in set(range(units)) - records:
            commit(epoch, unit)
        assert contents(storage) == contents(whole)
        for unit in records:
            assert read_record(storage, unit).epoch != epoch.number, "a committed unit was committed again"
        if not crashed:
            break
    assert at > units * 6


@pytest.mark.parametrize("again_at", range(1, 8))
def test_recovery_can_be_interrupted(root: Path, again_at: int) -> None:
    # Crash between the record and the move of the first part.
    with pytest.raises(CrashError):
        commit(Epoch.claim(CrashingStorage(root, 5)), 0)
    assert list(committed_units(LocalStorage(root))) == [0]
    assert contents(LocalStorage(root)) == {}
    with contextlib.suppress(CrashError):
        recover(CrashingStorage(root, again_at))
    storage = LocalStorage(root)
    assert recover(storage) == {0}
    assert len(contents(storage)) == 2


def test_epochs_are_claimed_once_each_and_the_newest_wins(storage: Storage) -> None:
    epochs = [Epoch.claim(storage) for _ in range(12)]
    assert [epoch.number for epoch in epochs] == list(range(1, 13))
    for older in epochs[:-1]:
        with pytest.raises(StoppedError, match="newer"):
            older.check()
    epochs[-1].check()


def test_an_older_driver_commits_nothing_more(storage: Storage) -> None:
    older = Epoch.claim(storage)
    commit(older, 0)
    parts = [stage(older, 1, group) for group in GROUPS]
    newer = Epoch.claim(storage)
    with pytest.raises(StoppedError):
        committer(older).commit(Unit(1, ()), parts)
    assert recover(newer) == {0}


@pytest.mark.parametrize("moved", [True, False])
def test_an_older_driver_that_creates_the_record_first_has_committed_the_unit(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    older = Epoch.claim(storage)
    newer = Epoch.claim(storage)
    # The older driver checked the epoch before the newer claim, and creates its record now.
    with monkeypatch.context() as patch:
        patch.setattr(Epoch, "check", lambda self: None)
        if not moved:
            patch.setattr(Committer, "_move_parts", lambda *_: None)
        commit(older, 0)
    record = committer(newer).commit(Unit(0, ()), [stage(newer, 0, group) for group in GROUPS])
    assert record.epoch == older.number
    assert len(contents(storage)) == 2


def test_a_retried_create_that_finds_its_own_file_succeeds(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    create = storage.put_if_absent

    def answer_lost(path: str, data: bytes) -> bool:
        create(path, data)
        return create(path, data)

    monkeypatch.setattr(storage, "put_if_absent", answer_lost)
    epoch = Epoch.claim(storage)
    assert epoch.number == 1
    commit(epoch, 0)
    assert read_record(storage, 0).epoch == 1


def test_a_part_that_the_driver_cannot_see_is_not_committed(storage: Storage) -> None:
    epoch = Epoch.claim(storage)
    part = stage(epoch, 0)
    storage.put(part.staged, b"half")
    with pytest.raises(IncompleteError, match="has 4 bytes, not 17"):
        committer(epoch).commit(Unit(0, ()), [part])
    storage.delete(part.staged)
    with pytest.raises(IncompleteError, match="all of them share"):
        committer(epoch).commit(Unit(0, ()), [part])
    assert list(committed_units(storage)) == []


def test_a_missing_part_is_reported_with_a_remedy(storage: Storage) -> None:
    epoch = Epoch.claim(storage)
    commit(epoch, 0)
    commit(epoch, 1)
    storage.delete(part_path(1, "cpu"))
    with pytest.raises(IncompleteError, match=r"units/0001/00000/00000001\.cpu\.parquet is missing"):
        recover(storage)
    storage.delete(UnitStore(storage).record_path(1))
    epoch = Epoch.claim(storage)
    assert recover(epoch) == {0}
    commit(epoch, 1)
    assert recover(epoch) == {0, 1}


def test_unknown_files_among_the_units_are_ignored(storage: Storage) -> None:
    epoch = Epoch.claim(storage)
    commit(epoch, 0)
    storage.put("units/README", b"")
    storage.put("units/0001/notes", b"")
    storage.put("units/0001/00000/notes.txt", b"")
    storage.put(part_path(5, "cpu"), b"no record")
    assert recover(epoch) == {0}


def test_recovery_reads_no_record_of_a_unit_in_place(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = Epoch.claim(storage)
    for unit in range(20):
        commit(epoch, unit)
    read: Callable[[str], bytes] = storage.read
    reads: list[str] = []
    monkeypatch.setattr(storage, "read", lambda path: (reads.append(path), read(path))[1])
    assert recover(epoch, 20) == set(range(20))
    assert reads == []


def test_a_full_folder_gets_a_segment_that_replaces_its_records(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.labelling.commit.FOLDER_UNITS", 4)
    monkeypatch.setattr("pipeline.job.unit_store.FOLDER_UNITS", 4)
    store = UnitStore(storage)
    epoch = Epoch.claim(storage)
    mine = committer(epoch)
    mine.recover(10, GROUPS)
    quarantined = (
        Quarantined("a", 3, "not-json", "at character 7", "text with \x00 and \ud7ff"),
        Quarantined("a", 5, "x"),
    )
    for unit in (7, 3, 4, 0, 6, 2, 8, 1):
        assert 0 not in store.segments()
        mine.commit(Unit(unit, ()), [stage(epoch, unit, group, quarantined) for group in GROUPS])
    assert store.segments() == {0}
    records = [store.read(unit) for unit in range(4)]
    assert list(store.records(4)) == records
    committed, in_place = store.listing(10)
    assert np.flatnonzero(committed).tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert set(in_place) == {4, 6, 7, 8}
    totals, reasons = store.totals(10)
    assert totals == {"units": 8, "records": 80, "empty": 8, "sentences": 240, "bytes_text": 4000}
    assert reasons == {"not-json": 8, "x": 8}

    commit(epoch, 5)
    assert recover(storage) == set(range(9)), "a segment that no driver came to write is written by the next"
    assert store.segments() == {0, 1}
    with pytest.raises(IncompleteError, match="unit 00000009 is not labelled"):
        list(store.records(10))
    # A segment is only a copy: if it is missing or damaged, the records are used.
    expected = list(store.records(9))
    storage.put(store.segment_path(0), storage.read(store.segment_path(0))[:-9])
    assert list(store.records(9)) == expected
    storage.delete(store.segment_path(1))
    assert list(store.records(9)) == expected
    assert store.totals(9)[0]["units"] == 9


def test_threads_may_commit_concurrently(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.labelling.commit.FOLDER_UNITS", 40)
    monkeypatch.setattr("pipeline.job.unit_store.FOLDER_UNITS", 40)
    epoch = Epoch.claim(storage)
    mine = committer(epoch)
    mine.recover(40, GROUPS)
    parts = {unit: [stage(epoch, unit, each) for each in GROUPS] for unit in range(40)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda unit: mine.commit(Unit(unit, ()), parts[unit]), range(40)))
    assert UnitStore(storage).segments() == {0}
    assert [record.unit for record in UnitStore(storage).records(40)] == list(range(40))
