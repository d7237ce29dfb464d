"""Read the records of a unit; a malformed record becomes a `Quarantined` value in its place."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from pipeline.config import LabelConfig
from pipeline.corpus.arrow_rows import ArrowRows
from pipeline.corpus.compression import CutError
from pipeline.corpus.decoding import Decoder
from pipeline.corpus.inputs import Source
from pipeline.corpus.parquet_rows import ParquetRows
from pipeline.corpus.plan import Plan, Unit
from pipeline.corpus.records import Quarantined, Record
from pipeline.corpus.streams import CHUNK, Readable, SourceFile, open_content, read_lines
from pipeline.corpus.warc import read_documents
from scorers.errors import UserError

Item = TypeVar("Item")


class UnitReader:
    """Reads units of a plan.

    The last source stays open, so that units read in ascending order decompress a file once. Any other order gives the
    same records, more slowly.
    """

    def __init__(self, plan: Plan, config: LabelConfig) -> None:
        self._plan = plan
        self._config = config
        self._open: tuple[int, _SourceReader] | None = None

    def read(self, unit: Unit) -> Iterator[Record | Quarantined]:
        """Yield the records of a unit in order.

        Raises:
            UserError: an input has changed since the plan was made.
            OSError: a disk or network failed; this says nothing about the records.
        """
        for part in unit.slices:
            source = self._plan.sources[part.source]
            try:
                yield from self._reader(part.source).read(part.start, part.stop)
            except (CutError, EOFError):
                raise UserError(_changed_message(source)) from None

    def close(self) -> None:
        """Close the open source; the next read opens it again."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _reader(self, index: int) -> "_SourceReader":
        if self._open is None or self._open[0] != index:
            self.close()
            source = self._plan.sources[index]
            reader = _open_reader(source, self._config)
            if reader.size != self._plan.entries[index].size:
                reader.close()
                raise UserError(_changed_message(source))
            self._open = (index, reader)
        return self._open[1]


def read_sources(sources: Sequence[Source], config: LabelConfig) -> Iterator[Record | Quarantined]:
    """Yield all records in order, without a plan. A source that is cut ends with a `Quarantined` value for the rest.

    Raises:
        UserError: a source cannot be opened, or a Parquet file lacks the text column.
        OSError: a disk or network failed.
    """
    for source in sources:
        count = 0
        try:
            reader = _open_reader(source, config)
            try:
                for record in reader.read(0, None):
                    yield record
                    count += 1
            finally:
                reader.close()
        except CutError as error:
            yield Quarantined(source.uri, count, error.reason, error.detail)


class _SourceReader(Protocol):
    """Reads records of one source; positions as in `Slice`; a `stop` of None means the end.

    `read` raises EOFError if the source ends before `stop`, and `CutError` where it is damaged.
    """

    @property
    def size(self) -> int: ...

    def read(self, start: int, stop: int | None) -> Iterator[Record | Quarantined]: ...

    def close(self) -> None: ...


def _open_reader(source: Source, config: LabelConfig) -> _SourceReader:
    if source.format == "parquet":
        return ParquetRows(source, config)
    if source.format == "arrow":
        return ArrowRows(source, config)
    if source.format == "text":
        return _TextReader(source, config)
    decoder = Decoder(source, config)
    if source.format == "warc":
        return _StreamReader(
            source, lambda stream: read_documents(source, stream, limit=decoder.limit), decoder.from_warc
        )
    if source.compression is None:
        return _LineReader(source, decoder)
    lines = partial(read_lines, limit=decoder.limit)
    return _StreamReader(source, lines, lambda position, line: decoder.from_json(position, line[2]))


class _TextReader:
    def __init__(self, source: Source, config: LabelConfig) -> None:
        self._source = source
        self._decoder = Decoder(source, config)
        self._file = open_content(source)
        self._at_start = True

    @property
    def size(self) -> int:
        return self._file.size

    def read(self, start: int, stop: int | None) -> Iterator[Record | Quarantined]:
        if not self._at_start:
            self.close()
            self._file = open_content(self._source)
        self._at_start = False
        content = bytearray()
        while len(content) <= self._decoder.limit and (data := self._file.read(CHUNK)):
            content += data
        while stop is None and self._file.read(CHUNK):  # without a plan, read to the end to detect a cut
            pass
        yield self._decoder.from_file(bytes(content))

    def close(self) -> None:
        self._file.close()


class _LineReader:
    def __init__(self, source: Source, decoder: Decoder) -> None:
        self._decoder = decoder
        self._file = SourceFile(source)

    @property
    def size(self) -> int:
        return self._file.size

    def read(self, start: int, stop: int | None) -> Iterator[Record | Quarantined]:
        self._file.seek(start)
        stop = self.size if stop is None else stop
        part = _Part(self._file, stop - start)
        for offset, _, line in read_lines(part, limit=self._decoder.limit, offset=start):
            yield self._decoder.from_json(offset, line)
        if part.left:
            raise EOFError

    def close(self) -> None:
        self._file.close()


class _Part:
    def __init__(self, file: SourceFile, size: int) -> None:
        self._file = file
        self.left = size

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self.left))
        self.left -= len(data)
        return data


class _StreamReader(Generic[Item]):
    """Reads records by index from a stream that can only be read from its start."""

    def __init__(
        self,
        source: Source,
        items: Callable[[Readable], Iterator[Item]],
        decode: Callable[[int, Item], Record | Quarantined],
    ) -> None:
        self._source = source
        self._read_items = items
        self._decode = decode
        self._rewind()

    @property
    def size(self) -> int:
        return self._stream.size

    def read(self, start: int, stop: int | None) -> Iterator[Record | Quarantined]:
        if start < self._next:
            self.close()
            self._rewind()
        while stop is None or self._next < stop:
            try:
                item = next(self._items)
            except StopIteration:
                if stop is None:
                    return
                raise EOFError from None
            position = self._next
            self._next += 1
            if position >= start:
                yield self._decode(position, item)

    def close(self) -> None:
        self._stream.close()

    def _rewind(self) -> None:
        self._stream = open_content(self._source)
        self._items = self._read_items(self._stream)
        self._next = 0


def _changed_message(source: Source) -> str:
    return (
        f"The input {source.uri} has changed since the job was planned. Put the file back as it was, "
        "or label the corpus into another output."
    )
