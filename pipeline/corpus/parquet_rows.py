"""Rows of a Parquet file as records, however damaged some of its pages are."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import LabelConfig
from pipeline.corpus.arrow_json import is_text, json_values, plain, utf8
from pipeline.corpus.decoding import INVALID_UTF8, Decoder
from pipeline.corpus.inputs import Source
from pipeline.corpus.records import Quarantined, Record
from pipeline.corpus.streams import UNREADABLE, CutError, SourceFile
from scorers.errors import UserError

_BUFFER_BYTES = 1024 * 1024
_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_ROWS = 1024

# Rows of the file from the first one on: a batch, or how many could not be read.
_Rows = tuple[int, pa.RecordBatch | int]


class ParquetRows:
    """The rows of one Parquet file, row group by row group; goes on where it stopped while positions ascend.

    Which rows are readable is a property of the file: batches lie on a grid that starts with each row group, and from
    the first batch that fails to the end of its group all rows are lost, wherever reading began.

    Raises:
        CutError: the footer cannot be read, so nothing of the file can.
        UserError: the text column is missing or does not hold strings, or a field of `meta_fields` is missing.
        OSError: the disk or network failed.
    """

    def __init__(self, source: Source, config: LabelConfig) -> None:
        self._decoder = Decoder(source, config)
        self._text_field = config.text_field
        self._file = SourceFile(source)
        try:
            self._parquet = _open(self._file)
            self._columns = _columns(source, self._parquet.schema_arrow, config)
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
        """Bytes of the file as it is now."""
        return self._file.size

    def row_groups(self) -> Iterator[tuple[int, int, int]]:
        """Each row group as (first row, rows, bytes of its text column before compression)."""
        metadata = self._parquet.metadata
        names = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
        for group, (start, rows) in enumerate(zip(self._starts, self._sizes, strict=True)):
            columns = (metadata.row_group(group).column(index) for index in range(metadata.num_columns))
            size = sum(
                column.total_uncompressed_size
                for name, column in zip(names, columns, strict=True)
                if name == self._text_field
            )
            yield start, rows, size

    def read(self, start: int, stop: int | None) -> Iterator[Record | Quarantined]:
        """Rows `[start, stop)`, None for all; those that cannot be read are quarantined one by one.

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
                yield from self._decode(start, batch.slice(start - first, end - start))
            start = end

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()

    def _rows_at(self, row: int) -> _Rows:
        """What holds a row; kept for the next call, which mostly asks for the row after."""
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
            for batch in self._parquet.iter_batches(rows, row_groups=[group], columns=self._columns, use_threads=False):
                yield first, batch
                first, left = first + batch.num_rows, left - batch.num_rows
        except (OSError, pa.ArrowException):
            if self._file.failure is not None:
                raise self._file.failure from None
        if left:
            yield first, left

    def _decode(self, start: int, batch: pa.RecordBatch) -> Iterator[Record | Quarantined]:
        at = batch.schema.get_field_index(self._text_field)
        texts = utf8(plain(batch.column(at)))
        others = {name: json_values(batch.column(each)) for each, name in enumerate(batch.schema.names) if each != at}
        for row, content in enumerate(texts):
            position = start + row
            if content is not None and len(content) > self._decoder.limit:
                yield self._decoder.too_large(position)
                continue
            try:
                text = None if content is None else content.decode()
            except UnicodeDecodeError as error:
                detail = f"at byte {error.start} of the field {self._text_field!r}"
                yield self._decoder.quarantined(position, INVALID_UTF8, detail, content)
                continue
            fields = {name: values[row] for name, values in others.items()}
            yield self._decoder.from_fields(position, {**fields, self._text_field: text}, content)


def _open(file: SourceFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.PythonFile(file, mode="r"), page_checksum_verification=True, buffer_size=_BUFFER_BYTES)
    except (OSError, pa.ArrowException) as error:
        if file.failure is not None:
            raise file.failure from None
        raise CutError(UNREADABLE, f"it is no readable Parquet file ({type(error).__name__})") from None


def _columns(source: Source, schema: pa.Schema, config: LabelConfig) -> list[str] | None:
    """The columns to read, None for all."""
    text = config.text_field
    there = ", ".join(dict.fromkeys(schema.names))
    if (count := len(schema.get_all_field_indices(text))) != 1:
        what = f"has {count} columns named" if count else "has no column"
        raise UserError(f"{source.uri} {what} {text!r}; it has: {there}. Name the column of the text by --text-field.")
    kind = schema.field(text).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (is_text(value) or pa.types.is_binary(value) or pa.types.is_large_binary(value)):
        raise UserError(
            f"The column {text!r} of {source.uri} holds {kind}, not strings; it has: {there}. "
            "Name the column of the text by --text-field."
        )
    if config.meta_fields is None:
        return None
    if missing := [field for field in config.meta_fields if field not in schema.names]:
        raise UserError(f"{source.uri} has no column {missing[0]!r}, which meta_fields names; it has: {there}.")
    identity = [config.id_field] if config.id_field in schema.names else []
    return list(dict.fromkeys([text, *identity, *config.meta_fields]))


def _length(rows: pa.RecordBatch | int) -> int:
    return rows if isinstance(rows, int) else int(rows.num_rows)
