"""The contract of storage, on a local disk; `test_s3.py` runs the same tests on an object store."""

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from pipeline.storage import Storage
from scorers.errors import UserError
from tests.pipeline.storage_contract import StorageContract


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path / "root"))


class TestLocal(StorageContract):
    """All of the contract."""


def _create(uri: str, number: int, barrier: object, results: object) -> None:
    storage = Storage.open(uri)
    barrier.wait()  # type: ignore[attr-defined]
    results.put((number, storage.put_if_absent("contended", str(number).encode() * 100_000)))  # type: ignore[attr-defined]


def test_of_many_processes_one_creates_a_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_create, args=(str(tmp_path), each, barrier, results)) for each in range(8)]
    for process in processes:
        process.start()
    outcomes = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    winners = [number for number, won in outcomes.items() if won]
    assert len(winners) == 1
    assert Storage.open(str(tmp_path)).read("contended") == str(winners[0]).encode() * 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["contended"]


def test_nothing_is_left_beside_a_file_and_nothing_half_is_listed(storage: Storage, tmp_path: Path) -> None:
    storage.put("a/b", b"1")
    storage.put_if_absent("a/b", b"2")
    storage.put("a/b", b"3")
    assert [path.name for path in (tmp_path / "root" / "a").iterdir()] == ["b"]
    # What a process that was killed in the middle of a put leaves behind.
    (tmp_path / "root" / "a" / ".b.0123456789abcdef.tmp").write_bytes(b"half")
    assert [info.path for info in storage.list()] == ["a/b"]
    assert storage.children("a") == ["b"]


def test_a_write_that_fails_changes_nothing(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put("a/b", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.put("a/b", b"new")
    with pytest.raises(OSError, match="No space left"):
        storage.put_if_absent("a/c", b"new")
    with pytest.raises(OSError, match="No space left"), storage.open_write("staging/x") as file:
        file.write(b"new")
    monkeypatch.undo()
    assert [path.relative_to(tmp_path / "root").as_posix() for path in tmp_path.rglob("*") if path.is_file()] == ["a/b"]
    assert storage.read("a/b") == b"old"


def test_every_write_is_flushed_with_its_folder(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    root = tmp_path / "root"
    for write in (storage.put, storage.put_if_absent):
        flushed.clear()
        write(f"{write.__name__}/deep/file", b"data")
        # The new folders are entries of their parents, the file is one of its folder.
        for folder in (tmp_path, root, root / write.__name__, root / write.__name__ / "deep"):
            assert str(folder) in flushed or folder == tmp_path
        assert any(Path(each).name.startswith(".file.") for each in flushed)
        assert flushed[-1] == str(root / write.__name__ / "deep")
    with storage.open_write("staging/x") as file:
        file.write(b"data")
        flushed.clear()
    assert flushed == [str(root / "staging" / "x"), str(root / "staging")]
    flushed.clear()
    storage.move("staging/x", "units/x")
    assert {str(root), str(root / "units"), str(root / "staging")} <= set(flushed)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="is a file"):
        Storage.open(str(file)).check()
    with pytest.raises(UserError, match="cannot be written"):
        Storage.open(str(file / "below")).check()
    Storage.open(str(tmp_path / "new" / "deep")).check()
    assert not (tmp_path / "new").exists()


def _check_as_nobody(uri: str, results: object) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    try:
        Storage.open(uri).check()
    except UserError as error:
        results.put(str(error))  # type: ignore[attr-defined]
    else:
        results.put("")  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_without_permission_is_refused(tmp_path: Path, mode: int) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(mode)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_check_as_nobody, args=(str(closed / "deep" / "new"), results))
    process.start()
    assert "cannot be written" in results.get()
    process.join()
    closed.chmod(0o700)


@pytest.mark.parametrize("uri", ["ftp://host/x", "", "s3://", "hdfs://host/x"])
def test_other_places_are_refused(uri: str) -> None:
    with pytest.raises(UserError):
        Storage.open(uri)


def test_a_local_place_means_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage.open("relative")
    storage.put("x", b"1")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(storage)).read("x") == b"1"
    assert Storage.open(f"file://{tmp_path}/relative").read("x") == b"1"
    assert Storage.open(storage.uri).read("x") == b"1"
