"""Read rows of Arrow IPC files as records: the files that Hugging Face's `save_to_disk` writes, and Feather files."""

from collections.abc import Iterator

import pyarrow as pa

from pipeline.config import LabelConfig
from pipeline.corpus.compression import TRUNCATED, UNREADABLE, CutError
from pipeline.corpus.inputs import Source
from pipeline.corpus.records import Quarantined, Record
from pipeline.corpus.rows import RowDecoder
from pipeline.corpus.streams import SourceFile
from scorers.errors import UserError

_FILE_MAGIC = b"ARROW1"
_END = b"\xff\xff\xff\xff\0\0\0\0"


class ArrowRows:
    """Reads one Arrow IPC stream or file batch by batch; reads at ascending positions continue where the last ended.

    The format has no checksums. The rows of an inconsistent batch are quarantined one by one; where the stream itself
    is damaged, or lacks its end mark, the rest is cut off.

    Raises:
        CutError: nothing can be read.
        UserError: see `RowDecoder`.
        OSError: the disk or network failed.
    """

    def __init__(self, source: Source, config: LabelConfig) -> None:
        self._file = SourceFile(source)
        try:
            self._is_file = self._file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
            self._rewind()
            self._decoder = self._make_decoder(source, config)
        except BaseException:
            self._file.close()
            raise

    @property
    def size(self) -> int:
        """The current size of the file in bytes."""
        return self._file.size

    @property
    def schema(self) -> pa.Schema:
        """The schema of the file."""
        return self._reader.schema

    def row_groups(self) -> Iterator[tuple[int, int, int]]:
        """Yield each batch as (first row, number of rows, bytes of the text column).

        Raises:
            CutError: after the last batch that can be read.
        """
        self._rewind()
        while (batch := self._next_batch()) is not None:
            rows = batch.num_rows
            # An inconsistent batch must not be accessed: pyarrow would read out of bounds.
            yield self._first - rows, rows, self._decoder.text_bytes(batch) if rows and self._sound else 0

    def read(self, start: int, stop: int | None) -> Iterator[Record | Quarantined]:
        """Yield rows `[start, stop)`, to the end for None; rows of an inconsistent batch are quarantined one by one.

        Raises:
            EOFError: the file has fewer rows.
            CutError: the rest cannot be read.
        """
        if self._current is None or start < self._first - self._current.num_rows:
            self._rewind()
        while stop is None or start < stop:
            while self._current is None or start >= self._first:
                if self._next_batch() is None:
                    if stop is None:
                        return
                    raise EOFError
            first = self._first - self._current.num_rows
            end = self._first if stop is None else min(stop, self._first)
            if self._sound:
                yield from self._decoder.decode(start, self._current.slice(start - first, end - start))
            else:
                for position in range(start, end):
                    yield self._decoder.quarantined(position, UNREADABLE, "its batch of the Arrow file is damaged")
            start = end

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _make_decoder(self, source: Source, config: LabelConfig) -> RowDecoder:
        try:
            return RowDecoder(source, self._reader.schema, config)
        except UserError:
            while (batch := self._next_batch()) is not None:
                if batch.num_rows:
                    raise
            return RowDecoder(source, self._reader.schema, config, has_rows=False)

    def _rewind(self) -> None:
        self._file.seek(0)
        self._current: pa.RecordBatch | None = None
        self._first = 0  # first row after the current batch
        self._sound = True
        self._index = 0
        open_reader = pa.ipc.open_file if self._is_file else pa.ipc.open_stream
        try:
            self._reader = open_reader(pa.PythonFile(self._file, mode="r"))
            _ = self._reader.schema.names  # raises if a name is not UTF-8
        except (OSError, pa.ArrowException, EOFError, ValueError) as error:
            self._fail(f"it is not a readable Arrow file ({type(error).__name__})")

    def _next_batch(self) -> pa.RecordBatch | None:
        try:
            if not self._is_file:
                batch = self._reader.read_next_batch()
            elif self._index < self._reader.num_record_batches:
                batch = self._reader.get_batch(self._index)
            else:
                return None
        except StopIteration:
            self._require_end()
            return None
        except (OSError, pa.ArrowException, EOFError, ValueError, MemoryError):
            self._fail("the Arrow file is truncated or damaged after its last readable batch")
        self._index += 1
        self._current = batch
        self._first += batch.num_rows
        self._sound = _is_sound(batch)
        return batch

    def _require_end(self) -> None:
        """Require the end mark: it alone distinguishes a complete stream from one cut off between two messages."""
        at = self._file.tell()
        self._file.seek(max(0, self.size - len(_END)))
        whole = self._file.read(len(_END)) == _END
        self._file.seek(at)
        if not whole:
            raise CutError(TRUNCATED, "the Arrow stream has no end mark")

    def _fail(self, detail: str) -> None:
        if self._file.failure is not None:
            raise self._file.failure from None
        raise CutError(TRUNCATED if self._file.at_end else UNREADABLE, detail) from None


def _is_sound(batch: pa.RecordBatch) -> bool:
    """Whether offsets and sizes are consistent; invalid UTF-8 is handled text by text later."""
    bytes_of = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }
    try:
        for column in batch.columns:
            (column.view(bytes_of[column.type]) if column.type in bytes_of else column).validate(full=True)
    except pa.ArrowException:
        return False
    return True
