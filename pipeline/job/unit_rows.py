"""Join the parts of a committed unit into its rows: those of the base group, with the scores of every group.

The records of several layers are merged, so that a unit has the parts and the quarantine of all of them.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.corpus.records import Quarantined
from pipeline.dataset.schema import ROW_FIELDS, SCORES, SPANS, SPANS_SUFFIX, unit_schema
from pipeline.job.unit_records import PartFile, UnitRecord
from pipeline.job.unit_store import UnitStore
from pipeline.storage.base import Storage
from scorers.errors import IncompleteError
from scorers.shell import phf


def joined_records(layers: Sequence[UnitStore], units: int) -> Iterator[UnitRecord]:
    """Yield one record, merged from all layers, for each of the first `units` units in order.

    Raises:
        IncompleteError: a unit is not committed in one of the layers, or a record is damaged.
    """
    for records in zip(*(layer.records(units) for layer in layers), strict=True):
        yield join_records(records)


def join_records(records: Sequence[UnitRecord]) -> UnitRecord:
    """Merge a unit's records of several layers into one.

    The counts are those of the first layer, whose rows the later layers read. A quarantined record is kept once, for
    the first layer that quarantined it.
    """
    first = records[0]
    if len(records) == 1:
        return first
    quarantined: dict[tuple[str, int], Quarantined] = {}
    for record in records:
        for each in record.quarantined:
            quarantined.setdefault((each.source, each.position), each)
    return first.model_copy(
        update={
            "parts": [part for record in records for part in record.parts],
            "quarantined": list(quarantined.values()),
        }
    )


_KEY = ["source", "position"]
_TYPES = {field.name: field.type for field in ROW_FIELDS}


def read_rows(storage: Storage, record: UnitRecord, columns: Sequence[str], spans: Collection[str] = ()) -> pa.Table:
    """Read the rows of a unit that no group quarantined, in order, as `unit_schema(columns, spans)`.

    Raises:
        IncompleteError: a part is missing or damaged (size, hash, page checksums), lacks a column or a row, or rows and
            quarantine do not add up to the records read.
        OSError: the storage fails.
    """
    tables = [_keep(pa.concat_tables(read_part(storage, part)), record) for part in record.parts]
    base = tables[0]
    for field in ROW_FIELDS:
        if field.name not in base.column_names or base.column(field.name).null_count:
            raise _damaged(storage, record.parts[0], f"it lacks {field.name} in some or all rows")
    schema = unit_schema(columns, spans)
    added = schema.names[len(ROW_FIELDS) :]
    arrays = {field.name: base.column(field.name) for field in ROW_FIELDS}
    for part, table in zip(record.parts, tables, strict=True):
        if table is not base and not table.select(_KEY).equals(base.select(_KEY)):
            raise _damaged(storage, part, f"its rows are not those of {record.parts[0].path}")
        for name in added:
            if name in table.column_names:
                if not table.schema.field(name).type.equals(schema.field(name).type):
                    raise _damaged(storage, part, f"its column {name!r} is of the wrong type")
                arrays[name] = table.column(name)
    missing = [name for name in added if name not in arrays]
    if missing:
        raise _damaged(storage, record.parts[-1], f"no part has the column {missing[0]}")
    if base.num_rows + len(record.quarantined) != record.records:
        raise IncompleteError(
            f"{storage.uri}: unit {record.unit:08d} does not add up: {record.records} records were read, but "
            f"{base.num_rows} are labelled and {len(record.quarantined)} quarantined. "
            "Its checksums are correct, so this is a bug in phf, not damage; label into another output."
        )
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def read_scores(
    storage: Storage, records: Iterator[UnitRecord], columns: Sequence[str]
) -> Iterator[Mapping[str, NDArray[np.float32]]]:
    """Yield the scores of the rows that `read_rows` returns, per unit: by column, float32 [sentences], without nulls.

    Raises:
        IncompleteError: a part is missing or damaged.
        OSError: the storage fails.
    """
    for record in records:
        scores: dict[str, NDArray[np.float32]] = {}
        # The keys are needed only to drop rows that another group has quarantined.
        keys = _KEY if record.quarantined and len(record.parts) > 1 else []
        for part in record.parts:
            try:
                with (
                    storage.open_read(part.path) as file,
                    pq.ParquetFile(file, page_checksum_verification=True) as parquet,
                ):
                    _check_types(storage, part, parquet.schema_arrow)
                    wanted = [column for column in columns if column in parquet.schema_arrow.names]
                    table = parquet.read([*keys, *wanted])
            except (OSError, pa.ArrowException) as error:
                raise _failed(storage, part, error) from None
            if keys:
                table = _keep(table, record)
            for column in wanted:
                scores[column] = table.column(column).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        yield scores


def read_part(storage: Storage, part: PartFile) -> list[pa.Table]:
    """Read the row groups of a part; a part without rows gives one empty table.

    Raises:
        IncompleteError: it is missing or damaged.
        OSError: the storage fails.
    """
    try:
        data = storage.read(part.path)
    except OSError as error:
        raise _failed(storage, part, error) from None
    if len(data) != part.size:
        raise _damaged(storage, part, f"it has {len(data)} bytes, not {part.size}")
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise _damaged(storage, part, "its sha256 is not the one in the unit's record")
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as parquet:
            _check_types(storage, part, parquet.schema_arrow)
            return [parquet.read_row_group(index) for index in range(parquet.num_row_groups)] or [parquet.read()]
    except (OSError, pa.ArrowException) as error:
        raise _failed(storage, part, error) from None


def _check_types(storage: Storage, part: PartFile, schema: pa.Schema) -> None:
    """Refuse a part that lacks a key column, or has a column of the wrong type."""
    for name in [*_KEY, *schema.names]:
        # The index is -1 also for a duplicate name.
        place = schema.get_field_index(name)
        # Scores can be in a column of any name.
        kinds = [_TYPES.get(name, SCORES), *([SPANS] if name.endswith(SPANS_SUFFIX) else [])]
        if place < 0 or schema.field(place).type not in kinds:
            raise _damaged(storage, part, f"its column {name!r} is missing, duplicate or of the wrong type")


def _keep(table: pa.Table, record: UnitRecord) -> pa.Table:
    """Drop the rows that are in quarantine."""
    if not record.quarantined:
        return table
    out = {(each.source, each.position) for each in record.quarantined}
    keys = zip(table.column("source").to_pylist(), table.column("position").to_pylist(), strict=True)
    return table.filter(pa.array([key not in out for key in keys], pa.bool_()))


def _remedy(storage: Storage) -> str:
    return f"`{phf('repair', storage.uri)}` labels the unit again."


def _damaged(storage: Storage, part: PartFile, what: str) -> IncompleteError:
    return IncompleteError(f"{storage.uri}/{part.path} is damaged: {what}. {_remedy(storage)}")


def _failed(storage: Storage, part: PartFile, error: Exception) -> Exception:
    """The exception for a part that cannot be read; a failing disk or store does not mean that the part is damaged."""
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
        return error
    return _damaged(storage, part, _first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
