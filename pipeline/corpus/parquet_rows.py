"""Read rows of a Parquet file as records; rows of damaged pages are quarantined."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import LabelConfig
from pipeline.corpus.compression import UNREADABLE, CutError
from pipeline.corpus.inputs import Source
from pipeline.corpus.records import Quarantined, Record
from pipeline.corpus.rows import RowDecoder
from pipeline.corpus.streams import SourceFile

_BUFFER_BYTES = 1024 * 1024
_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_ROWS = 1024

# First row, and the batch that begins there or the number of rows that could not be read.
_Rows = tuple[int, pa.RecordBatch | int]


class ParquetRows:
    """Reads one Parquet file row group by row group; reads at ascending positions continue where the last ended.

    Which rows are readable depends on the file alone: batches lie on a grid that starts with each row group, and all
    rows from the first failing batch to the end of its group are lost, wherever reading began.

    Raises:
        CutError: the footer cannot be read.
        UserError: see `RowDecoder`.
        OSError: the disk or network failed.
    """

    def __init__(self, source: Source, config: LabelConfig) -> None:
        self._file = SourceFile(source)
        try:
            self._parquet = _open(self._file)
            self._decoder = RowDecoder(
                source, self._parquet.schema_arrow, config, has_rows=self._parquet.metadata.num_rows > 0
            )
        except BaseException:
            self._file.close()
            raise
        metadata = self._parquet.metadata
        self._sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = list(accumulate(self._sizes[:-1], initial=0)) if self._sizes else []
        self._batches: Iterator[_Rows] = iter(())
        self._current: _Rows | None = None

    @property
    def size(self) -> int:
        """The current size of the file in bytes."""
        return self._file.size

    @property
    def schema(self) -> pa.Schema:
        """The schema of the file."""
        return self._parquet.schema_arrow

    def row_groups(self) -> Iterator[tuple[int, int, int]]:
        """Yield each row group as (first row, number of rows, uncompressed bytes of the text column)."""
        metadata, text = self._parquet.metadata, self._decoder.text_field
        names = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
        for group, (start, rows) in enumerate(zip(self._starts, self._sizes, strict=True)):
            columns = (metadata.row_group(group).column(index) for index in range(metadata.num_columns))
            size = sum(
                column.total_uncompressed_size
                for name, column in zip(names, columns, strict=True)
                if name == text or name.startswith(f"{text}.")
            )
            yield start, rows, size

    def read(self, start: int, stop: int | None) -> Iterator[Record | Quarantined]:
        """Yield rows `[start, stop)`, to the end for None; unreadable rows are quarantined one by one.

        Raises:
            EOFError: the file has fewer rows.
        """
        rows = sum(self._sizes)
        stop = rows if stop is None else stop
        if stop > rows:
            raise EOFError
        while start < stop:
            first, batch = self._rows_at(start)
            end = min(stop, first + _length(batch))
            if isinstance(batch, int):
                for position in range(start, end):
                    yield self._decoder.quarantined(position, UNREADABLE, "its page of the Parquet file is damaged")
            else:
                yield from self._decoder.decode(start, batch.slice(start - first, end - start))
            start = end

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()

    def _rows_at(self, row: int) -> _Rows:
        """The batch that holds a row; kept for the next call, which usually asks for the next row."""
        group = bisect_right(self._starts, row) - 1
        current = self._current
        if current is None or row < current[0] or self._starts[group] > current[0]:
            self._batches = self._read_group(group)
            current = next(self._batches)
        while row >= current[0] + _length(current[1]):
            current = next(self._batches)
        self._current = current
        return current

    def _read_group(self, group: int) -> Iterator[_Rows]:
        first, left = self._starts[group], self._sizes[group]
        width = max(1, self._parquet.metadata.row_group(group).total_byte_size // left)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // width))
        try:
            for batch in self._parquet.iter_batches(
                rows, row_groups=[group], columns=self._decoder.columns, use_threads=False
            ):
                yield first, batch
                first, left = first + batch.num_rows, left - batch.num_rows
        except (OSError, pa.ArrowException):
            if self._file.failure is not None:
                raise self._file.failure from None
        if left:
            yield first, left


def _open(file: SourceFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(
            pa.PythonFile(file, mode="r"),
            page_checksum_verification=True,
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,  # pyarrow's default reads whole column chunks, and so row groups, ahead
        )
    except (OSError, pa.ArrowException) as error:
        if file.failure is not None:
            raise file.failure from None
        raise CutError(UNREADABLE, f"it is not a readable Parquet file ({type(error).__name__})", 0) from None


def _length(rows: pa.RecordBatch | int) -> int:
    return rows if isinstance(rows, int) else int(rows.num_rows)
