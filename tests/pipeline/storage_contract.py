"""Tests for every kind of storage; a test module provides the fixture `storage` and a subclass."""

import hashlib
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.base import FileInfo, Storage
from scorers.paths import UnsafePathError


class StorageContract:
    """Tests that begin with an empty `storage`."""

    def test_put_if_absent_creates_once(self, storage: Storage) -> None:
        assert storage.put_if_absent("units/1.json", b"first")
        assert not storage.put_if_absent("units/1.json", b"second")
        assert storage.read("units/1.json") == b"first"

    def test_put_replaces(self, storage: Storage) -> None:
        storage.put("a", b"first")
        storage.put("a", b"second, longer")
        assert storage.read("a") == b"second, longer"
        assert storage.size("a") == 14

    def test_an_empty_file_is_a_file(self, storage: Storage) -> None:
        storage.put("a", b"")
        assert storage.read("a") == b""
        assert storage.exists("a")
        assert storage.size("a") == 0

    def test_a_missing_file_is_reported(self, storage: Storage) -> None:
        storage.put("folder/file", b"1")
        for path in ("missing", "folder"):
            with pytest.raises((FileNotFoundError, IsADirectoryError)):
                storage.read(path)
            assert not storage.exists(path)
            assert storage.size(path) is None
        with pytest.raises(FileNotFoundError):
            storage.open_read("missing")
        with pytest.raises(FileNotFoundError):
            storage.move("missing", "target")
        storage.delete("missing")
        storage.delete_folder("missing")
        assert list(storage.list("missing")) == []
        assert list(storage.children("missing")) == []

    def test_list_is_sorted_recursive_and_relative_to_the_root(self, storage: Storage) -> None:
        paths = ["a-b/x", "a.json", "a/b/c", "a/b.json", "a/b/a", "ab", "units/1.json", "units/1/cpu.parquet"]
        for number, path in enumerate(paths):
            storage.put(path, b"x" * number)
        assert list(storage.list()) == sorted(FileInfo(path, number) for number, path in enumerate(paths))
        for folder in ("a", "a/"):
            assert [info.path for info in storage.list(folder)] == ["a/b.json", "a/b/a", "a/b/c"]
            assert list(storage.children(folder)) == ["b.json", "b/"]
        assert list(storage.children()) == ["a-b/", "a.json", "a/", "ab", "units/"]

    def test_a_written_stream_is_counted_hashed_and_whole(self, storage: Storage) -> None:
        chunks = [bytes([number]) * 100_003 for number in range(200)]
        with storage.open_write("staging/deep/file") as file:
            for chunk in chunks:
                assert file.write(chunk) == len(chunk)
        data = b"".join(chunks)
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert storage.read("staging/deep/file") == data

    def test_a_stream_that_fails_leaves_nothing(self, storage: Storage) -> None:
        with pytest.raises(RuntimeError, match="boom"), storage.open_write("staging/file") as file:
            file.write(b"half")
            raise RuntimeError("boom")
        assert not storage.exists("staging/file")

    def test_parquet_round_trip(self, storage: Storage) -> None:
        table = pa.table({"text": [f"text {number}" * 50 for number in range(20_000)]})
        with storage.open_write("staging/x.parquet") as sink, pa.PythonFile(sink, mode="w") as file:
            pq.write_table(table, file, row_group_size=1000)
        assert storage.size("staging/x.parquet") == sink.size
        with storage.open_read("staging/x.parquet") as source:
            parquet = pq.ParquetFile(source)
            assert parquet.read_row_group(7).num_rows == 1000
            assert parquet.read() == table

    def test_move_replaces_and_can_be_repeated(self, storage: Storage) -> None:
        storage.put("staging/x", b"new")
        storage.put("units/x", b"old")
        storage.move("staging/x", "units/x")
        storage.move("staging/x", "units/x")
        assert storage.read("units/x") == b"new"
        assert not storage.exists("staging/x")

    def test_delete_removes_only_what_is_named(self, storage: Storage) -> None:
        for path in ("staging/1/a", "staging/1/b/c", "staging/2/a", "staging-2"):
            storage.put(path, b"1")
        storage.delete("staging/1/a")
        assert not storage.exists("staging/1/a")
        storage.delete_folder("staging")
        assert [info.path for info in storage.list()] == ["staging-2"]

    def test_a_storage_can_be_pickled(self, storage: Storage) -> None:
        storage.put("a", b"1")
        other = pickle.loads(pickle.dumps(storage))
        assert other.uri == storage.uri
        assert other.read("a") == b"1"

    def test_check_accepts_a_usable_storage_and_writes_nothing(self, storage: Storage) -> None:
        storage.check()
        assert list(storage.children()) == []

    @pytest.mark.parametrize("path", ["/etc/x", "..", "../x", "a/../../x", "./a", "a//b", "a\0b"])
    def test_a_path_that_leaves_the_root_is_refused(self, storage: Storage, path: str) -> None:
        storage.put("a", b"1")
        for attempt in (
            storage.read,
            storage.size,
            storage.open_read,
            storage.delete,
            storage.delete_folder,
            lambda each: storage.put(each, b"new"),
            lambda each: storage.put_if_absent(each, b"new"),
            lambda each: storage.move("a", each),
            lambda each: storage.move(each, "b"),
        ):
            with pytest.raises(UnsafePathError, match="not a relative path"):
                attempt(path)
        with pytest.raises(UnsafePathError, match="not a relative path"), storage.open_write(path) as file:
            file.write(b"new")
        assert [info.path for info in storage.list()] == ["a"]
