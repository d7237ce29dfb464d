"""Check the files of a dataset: size, hash, and page checksums."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.checking.problems import Findings
from pipeline.dataset.manifest import MANIFEST_NAME, File
from pipeline.storage.base import Storage
from scorers.amounts import format_count

_CHUNK = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of bytes read and hashed since the last call."""


class FileLike(Protocol):
    """A file with its expected size and hash."""

    @property
    def path(self) -> str:
        """The path relative to the root of the storage."""
        ...

    @property
    def size(self) -> int:
        """The size in bytes."""
        ...

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256."""
        ...


@dataclass(frozen=True)
class BytesProblem:
    """What is wrong with a file, and whether it can still be read."""

    what: str
    readable: bool


def compare_bytes(storage: Storage, file: FileLike, listed_in: str, progress: Progress) -> BytesProblem | None:
    """Compare a file's size and sha256 with the expected ones, which `listed_in` records; None if they match."""
    try:
        with storage.open_read(file.path) as stream:
            found, size = hashlib.sha256(), 0
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
                size += len(chunk)
                progress(len(chunk))
    except FileNotFoundError:
        return BytesProblem("is missing", readable=False)
    except OSError as error:
        return BytesProblem(f"cannot be read: {_brief(error)}", readable=False)
    if size != file.size:
        return BytesProblem(f"has {format_count(size, 'byte')}, not {file.size:,}", readable=True)
    if found.hexdigest() != file.sha256:
        return BytesProblem(f"its sha256 is not the one in {listed_in}", readable=True)
    return None


class FileChecker:
    """Reads the files that a manifest lists, once for the hash and once for the content, and reports damage."""

    def __init__(self, storage: Storage, findings: Findings, progress: Progress) -> None:
        self._storage = storage
        self._findings = findings
        self._progress = progress

    def table(self, file: File, schema: pa.Schema) -> pa.Table | None:
        """Read a small file; None if it cannot be read."""
        tables = list(self.row_groups(file, schema)) if self.check_bytes(file) else [None]
        return None if any(each is None for each in tables) else pa.concat_tables([schema.empty_table(), *tables])

    def check_bytes(self, file: File) -> bool:
        """Compare size and hash; false if the file cannot be read."""
        problem = compare_bytes(self._storage, file, MANIFEST_NAME, self._progress)
        if problem is not None:
            self._findings.add(file.path, problem.what)
        return problem is None or problem.readable

    def row_groups(self, file: File, schema: pa.Schema) -> Iterator[pa.Table | None]:
        """Yield the row groups of a Parquet file and verify page checksums; ends with None where reading fails."""
        try:
            with (
                self._storage.open_read(file.path) as stream,
                pq.ParquetFile(stream, page_checksum_verification=True) as parquet,
            ):
                if not parquet.schema_arrow.equals(schema):
                    self._findings.add(file.path, "its columns are not those of the manifest")
                    yield None
                    return
                for index in range(parquet.num_row_groups):
                    try:
                        table = parquet.read_row_group(index)
                        table.validate(full=True)
                    except (OSError, pa.ArrowException) as error:
                        self._findings.add(file.path, _locate(parquet, index, error))
                        yield None
                        return
                    yield table
        except (OSError, pa.ArrowException) as error:
            self._findings.add(file.path, f"cannot be read as Parquet: {_brief(error)}")
            yield None


def _locate(parquet: pq.ParquetFile, row_group: int, error: Exception) -> str:
    """Describe the error with the column of the row group that is damaged."""
    for column in parquet.schema_arrow.names:
        try:
            parquet.read_row_group(row_group, columns=[column])
        except (OSError, pa.ArrowException) as found:
            return f"row group {row_group}, column {column}: {_brief(found)}"
    return f"row group {row_group}: {_brief(error)}"


def _brief(error: Exception) -> str:
    """The first line of pyarrow's message; the rest names pyarrow's source files."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
