"""The files of an export as text: JSON lines and Parquet."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.manifest import File
from pipeline.storage.base import Storage
from pipeline.storage.new_files import COMPRESSIONS, write_lines
from scorers.stored import Count

Row = dict[str, str]

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)])
"""The schema of a Parquet file; JSON lines have the same keys."""

_ROW_GROUP_BYTES = 16_000_000


class ExportedFile(File):
    """A file with rows."""

    rows: Count


class TextWriter(ABC):
    """Writes rows in one format. The bytes depend on the rows alone."""

    @abstractmethod
    def write(self, storage: Storage, folder: str, number: int, rows: Iterator[Row]) -> list[ExportedFile]:
        """Write the rows of a shard to new files, in bounded memory; return their names below `folder`.

        Args:
            storage: of the output.
            folder: to write to.
            number: of the shard, part of the names.
            rows: in order.
        """

    def finish(self, storage: Storage, files: Sequence[ExportedFile]) -> list[File]:
        """Write what readers need beside the files, if anything, and return it."""
        return []


class Lines(TextWriter):
    """JSON lines, also compressed."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def write(self, storage: Storage, folder: str, number: int, rows: Iterator[Row]) -> list[ExportedFile]:  # noqa: D102
        name, counter = f"train-{number:05}{self._suffix}", _Counter(rows)
        with storage.open_write(f"{folder}/{name}") as sink:
            write_lines(nullcontext(sink), counter, COMPRESSIONS[self._suffix])
        return [ExportedFile(path=name, size=sink.size, sha256=sink.sha256, rows=counter.rows)]


class ParquetFiles(TextWriter):
    """Parquet with zstd and page checksums."""

    def write(self, storage: Storage, folder: str, number: int, rows: Iterator[Row]) -> list[ExportedFile]:  # noqa: D102
        name, counter = f"train-{number:05}.parquet", _Counter(rows)
        with (
            storage.open_write(f"{folder}/{name}") as sink,
            pa.PythonFile(sink, mode="w") as out,
            pq.ParquetWriter(
                out, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
            ) as writer,
        ):
            for group in _groups(counter):
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA), row_group_size=len(group))
        return [ExportedFile(path=name, size=sink.size, sha256=sink.sha256, rows=counter.rows)]


class _Counter(Iterator[Row]):
    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows, self.rows = rows, 0

    def __next__(self) -> Row:
        row = next(self._rows)
        self.rows += 1
        return row


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(map(len, row.values()))
        if size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


WRITERS: dict[str, TextWriter] = {
    **{suffix.removeprefix("."): Lines(suffix) for suffix in COMPRESSIONS},
    "parquet": ParquetFiles(),
}
"""By the names of `phf export --format`."""
