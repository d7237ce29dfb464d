"""A unit's part as Parquet: the rows and scores of the base group, or another group's keys and scores."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.dataset.schema import unit_schema
from pipeline.labelling.workers.label_records import Scored

_KEY_COLUMNS = ("source", "position")
_ROW_GROUP_BYTES = 64 * 1024 * 1024


def part_schema(columns: Sequence[str], *, base: bool) -> pa.Schema:
    """Schema of a group's part: `unit_schema` for the base group, keys and scores for another."""
    schema = unit_schema(columns)
    return schema if base else pa.schema([schema.field(name) for name in (*_KEY_COLUMNS, *columns)])


def row_groups(scored: Sequence[Scored]) -> Iterator[Sequence[Scored]]:
    """Rows cut so that no column of a row group reaches the 2 GiB that 32-bit offsets can address."""
    start = size = 0
    for index, each in enumerate(scored):
        size += len(each.record.text) + len(each.record.meta) + 8 * len(each.document.ends)
        if size >= _ROW_GROUP_BYTES:
            yield scored[start : index + 1]
            start, size = index + 1, 0
    if start < len(scored):
        yield scored[start:]


def table_of(rows: Sequence[Scored], schema: pa.Schema) -> pa.Table:
    """Rows as a table of a group's schema."""
    columns = {
        name: [getattr(each.record, name) for each in rows] for name in ("doc_id", "source", "position", "text", "meta")
    }
    values = columns | {"ends": [each.document.ends for each in rows]}
    arrays = [
        pa.array(values[each.name] if each.name in values else [row.scores[each.name] for row in rows], each.type)
        for each in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
