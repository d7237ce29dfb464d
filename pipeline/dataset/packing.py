"""Pack a stream of rows into row groups and shards by their size in memory, independently of its chunking."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.schema import SPANS

ROW_GROUP_BYTES = 16_000_000
"""A reader needs about one row group of memory; larger ones compress hardly better."""


@dataclass(frozen=True)
class RowGroup:
    """The rows of one row group, and the index of their shard."""

    shard: int
    rows: pa.Table


def pack(tables: Iterable[pa.Table], shard_bytes: int, row_group_bytes: int = ROW_GROUP_BYTES) -> Iterator[RowGroup]:
    """Yield the row groups of the concatenated tables, in order.

    A row group ends with the row that brings it to `row_group_bytes` of `row_sizes`, or its shard to `shard_bytes`. So
    the cuts depend on the sequence of rows alone, and memory holds one row group and one table.
    """
    shard, in_shard, in_group = 0, 0, 0
    pending: list[pa.Table] = []
    for table in tables:
        ends = np.cumsum(row_sizes(table))
        start = done = 0
        while start < table.num_rows:
            room = min(shard_bytes - in_shard, row_group_bytes - in_group)
            stop = min(table.num_rows, int(np.searchsorted(ends, done + room)) + 1)
            pending.append(table.slice(start, stop - start))
            size = int(ends[stop - 1]) - done
            start, done = stop, done + size
            in_shard, in_group = in_shard + size, in_group + size
            if size >= room:
                yield RowGroup(shard, pa.concat_tables(pending).combine_chunks())
                pending, in_group = [], 0
            if in_shard >= shard_bytes:
                shard, in_shard = shard + 1, 0
    if pending:
        yield RowGroup(shard, pa.concat_tables(pending).combine_chunks())


def row_sizes(table: pa.Table) -> NDArray[np.int64]:
    """The size of each row in memory in bytes, int64 [rows]: values and offsets, without validity bitmaps."""
    sizes = np.zeros(table.num_rows, dtype=np.int64)
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            offset = 8 if pa.types.is_large_string(field.type) else 4
            sizes += offset + _numbers(pc.binary_length(column))
        elif field.type.equals(SPANS):
            sizes += 4 + _span_sizes(column.combine_chunks())
        elif pa.types.is_list(field.type):
            sizes += 4 + field.type.value_type.byte_width * _numbers(pc.list_value_length(column))
        else:
            sizes += field.type.byte_width
    return sizes


def _span_sizes(spans: pa.ListArray) -> NDArray[np.int64]:
    counts = _numbers(pc.list_value_length(spans))
    found = spans.flatten()
    types = _numbers(pc.binary_length(found.field("type")))
    fixed = sum(each.type.bit_width // 8 for each in found.type if not pa.types.is_string(each.type)) + 4
    ends = np.cumsum(counts)
    total = np.concatenate([[0], np.cumsum(types)])
    sizes: NDArray[np.int64] = fixed * counts + total[ends] - total[ends - counts]
    return sizes


def _numbers(values: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return counts
