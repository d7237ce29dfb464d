"""Read the records of a file that a user hands in, such as labels: JSON Lines, CSV or Parquet, with limits."""

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from scorers.errors import UserError
from scorers.paths import escape_path
from scorers.stored import parse_json, read_stored

_LARGEST = 256 * 1024 * 1024  # in bytes, of the file and of its rows in memory
_JSON, _CSV, _PARQUET, _TEXT = (".jsonl", ".ndjson", ".json"), (".csv",), (".parquet",), (".txt",)
SUFFIXES = (*_JSON, *_CSV, *_PARQUET)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Record:
    """A record of a file.

    Attributes:
        number: of its line or row, from 1.
        where: the file and the line or row, for messages.
        values: by field.
    """

    number: int
    where: str
    values: dict[str, Any]


def read_records(
    path: str | Path,
    what: str,
    columns: Sequence[str],
    *,
    texts: Sequence[str] = (),
    line: str | None = None,
    most: int | None = None,
    first: int | None = None,
    largest: int = _LARGEST,
) -> list[Record]:
    """Read a file of records; blank lines are none.

    Args:
        path: the file; its suffix is the format. JSON Lines may hold fields within objects, CSV has a heading.
        what: the file for messages, such as `Labels`.
        columns: the only ones that are read of a Parquet file, as far as it has them.
        texts: columns of CSV that are text whatever they hold, such as `007`.
        line: the field that a line of a text file (.txt) becomes; None refuses such files.
        most: the maximum number of records; None for any.
        first: read only so many; None for all.
        largest: the maximum number of bytes, also of what a Parquet file unpacks to.

    Raises:
        UserError: the file cannot be read, is empty, holds too much, or a record is broken; names the place, and
            quotes nothing.
    """
    file, shown = Path(path), f"{what} {escape_path(str(path))}"
    suffix = file.suffix.lower()
    if suffix not in (*SUFFIXES, *(_TEXT if line else ())):
        kinds = "JSON Lines (.jsonl), CSV (.csv) or Parquet (.parquet)" + (", or text (.txt)" if line else "")
        raise UserError(f"{shown}: unknown kind of file. Give {kinds}.")
    records: list[Record] = []
    try:
        content = read_stored(file, largest)
        found = _records(suffix, content, shown, columns, texts, line, largest)
        for record in itertools.islice(found, first):
            records.append(record)
            if most is not None and len(records) > most:
                raise UserError(f"{shown}: more than {most:,} records. Give a smaller file.")
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{shown}: cannot be read: {error.strerror}.") from None
        # Also text that is not UTF-8, and dates that Python lacks; and damaged pages, for which Arrow raises an OSError
        # without a number. Arrow's messages may quote a row.
        raise UserError(
            f"{shown}: not a whole {suffix[1:].upper()} file in UTF-8, or one with values that cannot be read."
        ) from None
    if not records:
        raise UserError(f"{shown}: the file is empty. Give one with at least one record.")
    return records


def _records(
    suffix: str,
    content: bytes,
    shown: str,
    columns: Sequence[str],
    texts: Sequence[str],
    line: str | None,
    largest: int,
) -> Iterator[Record]:
    if line is not None and suffix in _TEXT:
        return (Record(number, where, {line: text}) for number, where, text in _lines(content, shown))
    if suffix in _JSON:
        return _of_json(content, shown)
    batches = _of_csv(content, shown, texts) if suffix in _CSV else _of_parquet(content, shown, columns)
    return _of_batches(batches, shown, largest)


def _lines(content: bytes, shown: str) -> Iterator[tuple[int, str, str]]:
    """Yield the number, place and text of each line that is not blank."""
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            where = f"{shown}, line {number:,}"
            try:
                yield number, where, line.removesuffix(b"\r").decode()
            except UnicodeDecodeError:
                raise UserError(f"{where}: not UTF-8 text. Save the file as UTF-8.") from None


def _of_json(content: bytes, shown: str) -> Iterator[Record]:
    for number, where, line in _lines(content, shown):
        try:
            values = parse_json(line)
        except ValueError:
            raise UserError(f"{where}: not valid JSON. Every line must be one object.") from None
        if not isinstance(values, dict):
            raise UserError(f"{where}: not a JSON object.")
        if "\\u" in line and _SURROGATE.search(json.dumps(values, ensure_ascii=False)):
            raise UserError(f"{where}: half of a surrogate pair, which is no text.")
        yield Record(number, where, values)


def _of_csv(content: bytes, shown: str, texts: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if not content.strip():
        return
    _check_quotes(content, shown)
    table = pacsv.read_csv(
        pa.BufferReader(content),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
    )
    if any(pa.types.is_binary(field.type) for field in table.schema):
        raise UserError(f"{shown}: not UTF-8 text. Save the file as UTF-8.")
    yield from table.to_batches(1024)


def _check_quotes(content: bytes, shown: str) -> None:
    """Refuse quotes that are not closed: Arrow would read all that follows as one value."""
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig", "replace"), newline=""), strict=True)
    usual = csv.field_size_limit(len(content))
    begins = 1
    try:
        for _ in reader:
            begins = reader.line_num + 1
    except csv.Error:
        raise UserError(
            f"{shown}, line {begins:,}: a value whose quotes are broken. Close the quote, and double those within."
        ) from None
    finally:
        csv.field_size_limit(usual)


def _of_parquet(content: bytes, shown: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    buffer = pa.BufferReader(content)
    with pq.ParquetFile(buffer) as file:
        schema, there = file.schema, file.schema_arrow.names
    names = [name for name in dict.fromkeys(columns) if name in there]
    if not names:
        found = escape_path(", ".join(there[:20]))
        raise UserError(f"{shown}: no column {' or '.join(map(repr, dict.fromkeys(columns)))}. Its columns: {found}.")
    leaves = [schema.column(index) for index in range(len(schema))]
    texts = [each.path for each in leaves if each.physical_type == "BYTE_ARRAY" and each.path in names]
    # Repeated texts stay in a dictionary, so that a small file cannot expand into a large one.
    with pq.ParquetFile(buffer, read_dictionary=texts, page_checksum_verification=True) as file:
        yield from file.iter_batches(batch_size=256, columns=names)


def _of_batches(batches: Iterable[pa.RecordBatch], shown: str, largest: int) -> Iterator[Record]:
    number = size = 0
    for batch in batches:
        names = batch.schema.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{shown}: it has {escape_path(repr(twice[0]))} as a column more than once. Rename one.")
        size += sum(map(_size, batch.columns))
        if size > largest:
            raise UserError(f"{shown}: it holds more than {largest:,} bytes. Give a smaller file.")
        for values in batch.to_pylist():
            number += 1
            yield Record(number, f"{shown}, row {number:,}", values)


def _size(column: pa.Array) -> int:
    """Bytes of a column, with each text counted as often as it occurs."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
