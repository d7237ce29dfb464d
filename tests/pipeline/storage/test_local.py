"""The contract of storage, on a local disk; `test_objects.py` runs the same tests on an object store."""

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.job.epoch import Epoch
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from scorers.errors import UserError
from scorers.paths import UnsafePathError
from tests.pipeline.storage_contract import StorageContract


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "root"))


class TestLocal(StorageContract):
    """The whole contract."""


def _create(uri: str, number: int, barrier: object, results: object) -> None:
    storage = open_storage(uri)
    barrier.wait()  # type: ignore[attr-defined]
    results.put((number, storage.put_if_absent("contended", str(number).encode() * 100_000)))  # type: ignore[attr-defined]


def test_only_one_of_many_processes_creates_a_file(tmp_path: Path) -> None:
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
    assert open_storage(str(tmp_path)).read("contended") == str(winners[0]).encode() * 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["contended"]


def test_no_temporary_files_remain_and_none_are_listed(storage: Storage, tmp_path: Path) -> None:
    storage.put("a/b", b"1")
    storage.put_if_absent("a/b", b"2")
    storage.put("a/b", b"3")
    assert [path.name for path in (tmp_path / "root" / "a").iterdir()] == ["b"]
    # The file that a process killed during a put leaves behind.
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
        # A new folder is an entry of its parent, and the file an entry of its folder, so all must be flushed.
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
        open_storage(str(file)).check()
    with pytest.raises(UserError, match="cannot be written"):
        open_storage(str(file / "below")).check()
    open_storage(str(tmp_path / "new" / "deep")).check()
    assert not (tmp_path / "new").exists()


def _check_as_nobody(uri: str, results: object) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)  # because root may write anywhere
    try:
        open_storage(uri).check()
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
def test_unsupported_locations_are_refused(uri: str) -> None:
    with pytest.raises(UserError):
        open_storage(uri)


def test_a_local_path_means_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("relative")
    storage.put("x", b"1")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(storage)).read("x") == b"1"
    assert open_storage(f"file://{tmp_path}/relative").read("x") == b"1"
    assert open_storage(storage.uri).read("x") == b"1"


@pytest.fixture
def linked(storage: Storage, tmp_path: Path) -> Storage:
    """A root with links to a folder outside it, `witness`."""
    witness = tmp_path / "witness"
    (witness / "empty").mkdir(parents=True)
    (witness / "precious").write_text("precious")
    (witness / ".x.0.tmp").write_text("precious")
    storage.put("real/file", b"1")
    for path, target in (("folder", witness), ("real/folder", witness), ("real/link", witness / "precious")):
        (tmp_path / "root" / path).symlink_to(target)
    return storage


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[None]:
    """Assert that nothing outside the root has changed."""
    yield
    witness = tmp_path / "witness"
    assert sorted(path.name for path in witness.iterdir()) == [".x.0.tmp", "empty", "precious"]
    assert (witness / "precious").read_text() == "precious"


@pytest.mark.usefixtures("untouched")
def test_nothing_is_read_or_written_over_a_link(linked: Storage) -> None:
    for folder in ("folder", "real/folder"):
        attempts = [
            lambda path: linked.read(path),
            lambda path: linked.size(path),
            lambda path: linked.open_read(path),
            lambda path: linked.put(path, b"new"),
            lambda path: linked.put_if_absent(path, b"new"),
            lambda path: linked.open_write(path).__enter__(),
            lambda path: linked.delete(path),
            lambda path: linked.delete_folder(path),
            lambda path: linked.delete_empty(path),
            lambda path: linked.move(path, "elsewhere"),
            lambda path: linked.move("real/file", path),
        ]
        for attempt in attempts:
            for name in ("precious", "new", "empty"):
                with pytest.raises(UnsafePathError, match=f"{folder} is a link"):
                    attempt(f"{folder}/{name}")
        for attempt in (linked.delete_folder, linked.delete_empty, linked.read):
            with pytest.raises(UnsafePathError, match=f"{folder} is a link"):
                attempt(folder)
        assert list(linked.children(folder)) == list(linked.list(folder)) == []
    assert [info.path for info in linked.list()] == ["real/file"]
    assert list(linked.children()) == ["real/"]
    assert list(linked.unfinished(0.0)) == []
    assert sorted(path for path, _ in linked.irregular()) == ["folder", "real/folder", "real/link"]
    with pytest.raises(UnsafePathError, match="folder is a link"):
        Epoch.claim(linked)


@pytest.mark.usefixtures("untouched")
def test_what_is_replaced_or_deleted_may_be_a_link_itself(linked: Storage, tmp_path: Path) -> None:
    place = tmp_path / "root" / "real" / "link"
    for replace in (
        lambda: linked.put("real/link", b"new"),
        lambda: linked.move("real/file", "real/link"),
        lambda: linked.delete("real/link"),
        lambda: linked.delete_folder("real"),
    ):
        linked.put("real/file", b"new")
        place.unlink(missing_ok=True)
        place.symlink_to(tmp_path / "witness" / "precious")
        replace()
        assert not place.is_symlink()


def test_a_file_that_others_share_is_not_written_through(storage: Storage, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.write_text("precious")
    (tmp_path / "root" / "staging").mkdir(parents=True)
    os.link(shared, tmp_path / "root" / "staging" / "x")
    with storage.open_write("staging/x") as file:
        file.write(b"new")
    assert shared.read_text() == "precious"
    assert storage.read("staging/x") == b"new"
