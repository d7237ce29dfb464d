"""Reads every input once: fingerprints it, counts its records, and cuts the corpus into units."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from pipeline.config import LabelConfig
from pipeline.corpus.fields import check_fields
from pipeline.corpus.inputs import Source, cannot_read, find_sources
from pipeline.corpus.parquet_rows import ParquetRows
from pipeline.corpus.plan import Plan, Units
from pipeline.corpus.records import Quarantined
from pipeline.corpus.streams import CutError, Decompressed, SourceFile, read_lines
from pipeline.dataset.manifest import SourceEntry
from scorers.errors import UserError

Progress = Callable[[Source, int], None]


def make_plan(
    config: LabelConfig, progress: Progress | None = None, *, sources: Sequence[Source] | None = None
) -> Plan:
    """Find the inputs, read each once, and cut them into units of at most `unit_size` bytes (or one longer record).

    Units follow the records of the sorted sources, so small files share a unit and a large one has many. Plain
    `.jsonl` counts by its bytes, a compressed file by its content, Parquet by its text column before compression.

    Args:
        config: the job.
        progress: told of a source and how many of its bytes were read since the last call.
        sources: what to read; None for all that the job names.

    Raises:
        UserError: what `find_sources` and `check_fields` refuse, or an input that cannot be read.
    """
    if sources is None:
        sources = find_sources(config.inputs, config.kind, output=config.output)
    check_fields(sources, config)
    packer = _Packer(int(config.unit_size))
    entries: list[SourceEntry] = []
    cut: list[Quarantined] = []
    for index, source in enumerate(sources):
        fingerprint = _Fingerprint(source, progress)
        records = 0
        try:
            for start, stop, size, count in _pieces(source, config, fingerprint):
                packer.add(index, start, stop, size)
                records += count
        except CutError as error:
            cut.append(Quarantined(source.uri, records, error.reason, error.detail))
        except OSError as error:
            raise UserError(cannot_read(source.uri, error)) from None
        entries.append(SourceEntry(uri=source.uri, size=fingerprint.size, sha256=fingerprint.sha256, records=records))
    return Plan(list(sources), entries, packer.finish(), cut)


class _Fingerprint:
    def __init__(self, source: Source, progress: Progress | None) -> None:
        self._source = source
        self._progress = progress
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def update(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        if self._progress is not None and data:
            self._progress(self._source, len(data))


# Smallest parts that a unit is made of: (start, stop, size, records).
_Pieces = Iterator[tuple[int, int, int, int]]


def _pieces(source: Source, config: LabelConfig, fingerprint: _Fingerprint) -> _Pieces:
    """All bytes of the source have passed `fingerprint` at the end, also when it comes by `CutError`."""
    if source.format == "jsonl" and source.compression is None:
        yield from _line_pieces(source, config, fingerprint)
    elif source.format == "jsonl":
        yield from _stream_pieces(source, config, fingerprint)
    else:
        with SourceFile(source, fingerprint.update) as file:
            file.drain()
        if source.format == "text":
            yield 0, 1, fingerprint.size, 1
        else:
            yield from _row_pieces(source, config)


def _line_pieces(source: Source, config: LabelConfig, fingerprint: _Fingerprint) -> _Pieces:
    with SourceFile(source, fingerprint.update) as file:
        for offset, size, _ in read_lines(file, limit=config.max_record_size):
            yield offset, offset + size, size, 1


def _stream_pieces(source: Source, config: LabelConfig, fingerprint: _Fingerprint) -> _Pieces:
    stream = Decompressed(source, fingerprint.update)
    try:
        for index, (_, size, _) in enumerate(read_lines(stream, limit=config.max_record_size)):
            yield index, index + 1, size, 1
    finally:
        stream.raw.drain()
        stream.close()


def _row_pieces(source: Source, config: LabelConfig) -> _Pieces:
    rows = ParquetRows(source, config)
    try:
        for first, count, size in rows.row_groups():
            parts = min(count, -(-size // config.unit_size)) or 1
            bounds = [first + count * part // parts for part in range(parts + 1)]
            for start, stop in pairwise(bounds):
                yield start, stop, size * (stop - start) // max(1, count), stop - start
    finally:
        rows.close()


class _Packer:
    def __init__(self, unit_size: int) -> None:
        self._limit = unit_size
        self._units: list[list[tuple[int, int, int]]] = []
        self._slices: list[tuple[int, int, int]] = []
        self._size = 0

    def add(self, source: int, start: int, stop: int, size: int) -> None:
        if start == stop:
            return
        size = max(size, 1)  # so that not even empty files share a unit without end
        if self._slices and self._size + size > self._limit:
            self._flush()
        if self._slices and self._slices[-1][0] == source:
            start = self._slices.pop()[1]
        self._slices.append((source, start, stop))
        self._size += size

    def finish(self) -> Units:
        if self._slices:
            self._flush()
        return Units.of(self._units)

    def _flush(self) -> None:
        self._units.append(self._slices)
        self._slices, self._size = [], 0
