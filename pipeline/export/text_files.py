"""The files of an export as text: JSON lines, Parquet, and MDS (mosaicml-streaming)."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.manifest import File
from pipeline.storage.base import HashingWriter, Storage
from pipeline.storage.new_files import COMPRESSIONS, write_lines
from scorers.errors import UserError
from scorers.stored import Count

Row = dict[str, str]

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)])
"""The schema of a Parquet file; JSON lines have the same keys."""

_ROW_GROUP_BYTES = 16_000_000
# The library's default for a shard; its offsets are of 32 bits.
_MDS_INDEX = "index.json"
_MDS_BYTES, _MDS_MOST = 1 << 26, 1 << 32


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


class MDSShards(TextWriter):
    """Shards and the index of mosaicml-streaming, version 2 of MDS, with columns `id` and `text` of its encoding `str`.

    A shard is the number of samples and the offset of each and of the end, uint32, the configuration as JSON, and the
    samples: the length of each value, uint32, then the values in UTF-8. The library could write it too, but it pins
    other versions of what phf needs, and cannot continue.
    """

    _CONFIG: ClassVar = {
        "column_encodings": ["str", "str"],
        "column_names": ["id", "text"],
        "column_sizes": [None, None],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": _MDS_BYTES,
        "version": 2,
    }

    def write(self, storage: Storage, folder: str, number: int, rows: Iterator[Row]) -> list[ExportedFile]:  # noqa: D102
        files: list[ExportedFile] = []
        for samples in _shards(rows):
            name = f"shard.{number:05}.{len(files):05}.mds"
            with storage.open_write(f"{folder}/{name}") as sink:
                self._write_shard(sink, samples)
            files.append(ExportedFile(path=name, size=sink.size, sha256=sink.sha256, rows=len(samples)))
        return files

    def finish(self, storage: Storage, files: Sequence[ExportedFile]) -> list[File]:
        """Write `index.json`, which readers open."""
        shards = [
            {
                **self._CONFIG,
                "raw_data": {"basename": file.path, "bytes": file.size, "hashes": {}},
                "samples": file.rows,
                "zip_data": None,
            }
            for file in files
        ]
        content = json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode()
        storage.put(_MDS_INDEX, content)
        return [File(path=_MDS_INDEX, size=len(content), sha256=hashlib.sha256(content).hexdigest())]

    def _write_shard(self, sink: HashingWriter, samples: Sequence[bytes]) -> None:
        config = json.dumps(self._CONFIG, sort_keys=True).encode()
        offsets = np.cumsum([4 + 4 * (len(samples) + 1) + len(config), *map(len, samples)])
        if offsets[-1] >= _MDS_MOST:
            raise UserError(
                "A document is too long for MDS, whose shards have less than 4 GiB. Choose another --format."
            )
        sink.write(np.uint32(len(samples)).tobytes() + offsets.astype("<u4").tobytes() + config)
        for sample in samples:
            sink.write(sample)


def _shards(rows: Iterator[Row]) -> Iterator[list[bytes]]:
    samples: list[bytes] = []
    size = 0
    for row in rows:
        values = [row["id"].encode(), row["text"].encode()]
        sample = np.array([len(each) for each in values], dtype="<u4").tobytes() + b"".join(values)
        if samples and size + len(sample) > _MDS_BYTES:
            yield samples
            samples, size = [], 0
        samples.append(sample)
        size += len(sample)
    if samples:
        yield samples


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
    "mds": MDSShards(),
}
"""By the names of `phf export --format`."""
