"""The Arrow schema of a labelled dataset: one row per document, lists with one value per sentence."""

from collections.abc import Collection, Sequence
from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1
SCHEMA_VERSION_SPANS: Final = 2
"""The version of datasets that store spans, which readers of version 1 alone refuse."""

ALIGNED_SUFFIX = "_aligned"
SPANS_SUFFIX = "_spans"

ROW_FIELDS: tuple[pa.Field, ...] = (
    pa.field("doc_id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("position", pa.int64(), nullable=False),
    pa.field("text", pa.large_string(), nullable=False),
    pa.field("meta", pa.string(), nullable=False),
    pa.field("ends", pa.list_(pa.int32()), nullable=False),
)
RESERVED_COLUMNS = frozenset(field.name for field in ROW_FIELDS)


SCORES = pa.list_(pa.float32())
SPANS = pa.list_(
    pa.struct(
        [
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("type", pa.string()),
            pa.field("score", pa.float32()),
        ]
    )
)
"""Where a scorer found something: half open, in code points of the document, sorted; null where the scores are null."""


def unit_schema(columns: Sequence[str], spans: Collection[str] = ()) -> pa.Schema:
    """Schema of a committed unit: the rows with a float32 score per sentence in each column, without tags.

    The columns in `spans` are followed by their spans.
    """
    fields = list(ROW_FIELDS)
    for column in columns:
        fields += [pa.field(column, SCORES), *_spans_field(column, spans)]
    return pa.schema(fields)


def dataset_schema(columns: Sequence[str], spans: Collection[str] = ()) -> pa.Schema:
    """Schema of every shard: `unit_schema` plus, after each score column, its boolean preference tags."""
    fields = list(ROW_FIELDS)
    for column in columns:
        tags = pa.field(column + ALIGNED_SUFFIX, pa.list_(pa.bool_()))
        fields += [pa.field(column, SCORES), tags, *_spans_field(column, spans)]
    return pa.schema(fields)


def spans_column(column: str) -> str:
    """The name of the spans of a score column."""
    return column + SPANS_SUFFIX


LEDGER_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("records", pa.int64(), nullable=False),
        pa.field("labelled", pa.int64(), nullable=False),
        pa.field("empty", pa.int64(), nullable=False),
        pa.field("quarantined", pa.map_(pa.string(), pa.int64()), nullable=False),
        pa.field("sentences", pa.int64(), nullable=False),
        pa.field("bytes_text", pa.int64(), nullable=False),
    ]
)
"""One row per unit: its records = labelled + empty + quarantined (by reason), and the totals of its rows."""

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.int64()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("text", pa.large_string()),
    ]
)
"""One row per record that is not in the dataset: its place and the reason. `unit` is null for the unreadable rest of a
source; `text` is null unless `quarantine_text` was set."""


def _spans_field(column: str, spans: Collection[str]) -> list[pa.Field]:
    return [pa.field(spans_column(column), SPANS)] if column in spans else []
