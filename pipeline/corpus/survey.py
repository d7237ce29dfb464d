"""Survey one input in a single pass: fingerprint it, count its records, and find where it can be cut."""

import hashlib
import queue
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.config import LabelConfig
from pipeline.corpus.arrow_rows import ArrowRows
from pipeline.corpus.compression import TRUNCATED, CutError
from pipeline.corpus.inputs import Source, cannot_read
from pipeline.corpus.parquet_rows import ParquetRows
from pipeline.corpus.records import Quarantined
from pipeline.corpus.scanning import scan_lines
from pipeline.corpus.streams import CHUNK, SourceFile, open_content
from pipeline.corpus.warc import read_documents
from pipeline.dataset.manifest import SourceEntry
from scorers.errors import UserError

Numbers = NDArray[np.int64]

# A file of at least this size is hashed in a separate thread while it is scanned for lines.
_HASH_APART_BYTES = 64 * 1024 * 1024
_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class Survey:
    """The result of surveying one input.

    Attributes:
        entry: the fingerprint.
        blocks: int64 [blocks, 3]; start, stop and size of the blocks that the input is cut into, each at most a unit.
        cut: the unreadable rest, if the input ends early.
    """

    entry: SourceEntry
    blocks: Numbers
    cut: Quarantined | None


def survey(source: Source, config: LabelConfig, on_read: Callable[[int], None]) -> Survey:
    """Read an input once, in bounded memory apart from three numbers per block.

    Blocks have at most `config.unit_size` bytes, or one longer record. `on_read` is called with the number of bytes
    read since the last call.

    Raises:
        UserError: the input cannot be read, or lacks what the job needs.
    """
    blocks = _Blocks(int(config.unit_size))
    cut, read = None, None
    with _Fingerprint(on_read, apart=source.size >= _HASH_APART_BYTES) as fingerprint:
        try:
            for starts, stops, sizes, records in _pieces(source, config, fingerprint):
                blocks.add(starts, stops, sizes, records)
        except CutError as error:
            cut = Quarantined(source.uri, blocks.records, error.reason, error.detail)
            read = None if error.reason == TRUNCATED else error.read
        except OSError as error:
            raise UserError(cannot_read(source.uri, error)) from None
    entry = SourceEntry(
        uri=source.uri,
        size=fingerprint.size,
        sha256=fingerprint.sha256,
        records=blocks.records,
        unread=0 if cut is None else max(1, fingerprint.size - (read or 0)),
    )
    return Survey(entry, blocks.finish(), cut)


# The smallest parts of blocks, many at a time: starts, stops, sizes, and their total number of records.
_Pieces = Iterator[tuple[Numbers, Numbers, Numbers, int]]


def _pieces(source: Source, config: LabelConfig, fingerprint: "_Fingerprint") -> _Pieces:
    """Yield the parts of a source; `fingerprint` has all its bytes at the end, even after a `CutError`."""
    if source.format in {"jsonl", "warc"} or source.compression is not None:
        stream = open_content(source, fingerprint.update)
        try:
            if source.format == "text":
                size = sum(map(len, iter(lambda: stream.read(CHUNK), b"")))
                yield np.array([0]), np.array([1]), np.array([size]), 1
            elif source.format == "jsonl":
                yield from _line_pieces(scan_lines(stream, limit=config.max_record_size), source.compression is None)
            else:
                documents = read_documents(source, stream, limit=config.max_record_size)
                yield from _document_pieces(each.size for each in documents)
            stream.drain()
        except CutError:
            stream.drain()
            raise
        finally:
            stream.close()
        return
    with SourceFile(source, fingerprint.update) as file:
        file.drain()
    if source.format == "text":
        yield np.array([0]), np.array([1]), np.array([fingerprint.size]), 1
    else:
        yield from _row_pieces(source, config)


def _line_pieces(lines: Iterator[tuple[Numbers, Numbers]], by_bytes: bool) -> _Pieces:
    first = 0
    for offsets, sizes in lines:
        starts = offsets if by_bytes else np.arange(first, first + len(sizes))
        yield starts, starts + (sizes if by_bytes else 1), sizes, len(sizes)
        first += len(sizes)


def _document_pieces(documents: Iterator[int]) -> _Pieces:
    first = 0
    sizes: list[int] = []
    try:
        for size in documents:
            sizes.append(size)
            if len(sizes) == _BATCH_DOCUMENTS:
                yield _numbered(first, sizes)
                first, sizes = first + len(sizes), []
    except CutError:
        yield _numbered(first, sizes)
        raise
    yield _numbered(first, sizes)


def _numbered(first: int, sizes: list[int]) -> tuple[Numbers, Numbers, Numbers, int]:
    starts = np.arange(first, first + len(sizes))
    return starts, starts + 1, np.array(sizes, np.int64), len(sizes)


def _row_pieces(source: Source, config: LabelConfig) -> _Pieces:
    rows = ParquetRows(source, config) if source.format == "parquet" else ArrowRows(source, config)
    try:
        for first, count, size in rows.row_groups():
            parts = min(count, -(-size // config.unit_size)) or 1
            for start, stop in pairwise([first + count * part // parts for part in range(parts + 1)]):
                if start < stop:
                    share = size * (stop - start) // count
                    yield np.array([start]), np.array([stop]), np.array([share]), stop - start
    finally:
        rows.close()


class _Blocks:
    """Packs pieces, in order, into as few blocks as possible of at most `limit` bytes (or one longer piece)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks = array("q")
        self._start = self._stop = self._size = 0
        self.records = 0

    def add(self, starts: Numbers, stops: Numbers, sizes: Numbers, records: int) -> None:
        self.records += records
        ends = np.cumsum(np.maximum(sizes, 1))  # count at least 1, so that a unit cannot hold endless empty files
        at = done = 0
        while at < len(ends):
            fitting = int(np.searchsorted(ends, done + self._limit - self._size, side="right"))
            if self._size and fitting <= at:
                self._flush()
                continue
            if not self._size:
                self._start = int(starts[at])
            at = max(fitting, at + 1)
            self._stop = int(stops[at - 1])
            self._size += int(ends[at - 1]) - done
            done = int(ends[at - 1])

    def finish(self) -> Numbers:
        if self._size:
            self._flush()
        return np.array(self._blocks, np.int64).reshape(-1, 3)

    def _flush(self) -> None:
        self._blocks.extend((self._start, self._stop, self._size))
        self._size = 0


class _Fingerprint:
    """Computes size and SHA-256 of a stream of bytes; with `apart`, a thread hashes while the caller goes on."""

    def __init__(self, on_read: Callable[[int], None], *, apart: bool) -> None:
        self._on_read = on_read
        self._hash = hashlib.sha256()
        self.size = 0
        self._queue: queue.Queue[bytes | None] = queue.Queue(maxsize=4)
        self._thread = threading.Thread(target=self._drain, daemon=True) if apart else None

    def __enter__(self) -> "_Fingerprint":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    @property
    def sha256(self) -> str:
        """The hexadecimal digest; complete once the `with` block has been left."""
        return self._hash.hexdigest()

    def update(self, data: bytes) -> None:
        """Add bytes."""
        if not data:
            return
        if self._thread is None:
            self._hash.update(data)
        else:
            self._queue.put(data)
        self.size += len(data)
        self._on_read(len(data))

    def _drain(self) -> None:
        while (data := self._queue.get()) is not None:
            self._hash.update(data)
