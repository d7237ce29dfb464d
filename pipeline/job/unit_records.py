"""The formats of commit records, and of segments, which hold a thousand of them in one file."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.corpus.records import Quarantined
from pipeline.dataset.writer import parquet_writer
from scorers.paths import RelativePath, check_path


class PartFile(BaseModel):
    """A part of a committed unit. `staged` is the path where it was staged, empty if it never was."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str
    staged: Annotated[str, AfterValidator(lambda path: path and check_path(path))]
    path: RelativePath
    size: int
    sha256: str
    rows: int


class UnitRecord(BaseModel):
    """The commit record of a unit.

    Attributes:
        unit: index of the unit in the plan.
        epoch: epoch of the driver that committed it.
        parts: one per group, the base group first. Rows that any group has quarantined are in `quarantined`, and are
            dropped when the parts are joined.
        records: number of records read, including `quarantined` ones.
        empty, sentences, bytes_text: of the base part's rows, before those are dropped that other groups quarantined.
        quarantined: each record once, in the order of the groups.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: int
    epoch: int
    parts: list[PartFile] = Field(min_length=1)
    records: int
    empty: int
    sentences: int
    bytes_text: int
    quarantined: list[Quarantined]


_TEXTS = ("group", "staged", "path")
SEGMENT_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.int64(), nullable=False) for name in ("unit", "epoch")),
        pa.field(
            "parts",
            pa.list_(
                pa.struct(
                    [
                        *(pa.field(name, pa.string(), nullable=False) for name in _TEXTS),
                        pa.field("size", pa.int64(), nullable=False),
                        pa.field("sha256", pa.string(), nullable=False),
                        pa.field("rows", pa.int64(), nullable=False),
                    ]
                )
            ),
            nullable=False,
        ),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("records", "empty", "sentences", "bytes_text")),
        pa.field(
            "quarantined",
            pa.list_(
                pa.struct(
                    [
                        pa.field("source", pa.string(), nullable=False),
                        pa.field("position", pa.int64(), nullable=False),
                        pa.field("reason", pa.string(), nullable=False),
                        pa.field("detail", pa.string(), nullable=False),
                        pa.field("text", pa.large_string()),
                    ]
                )
            ),
            nullable=False,
        ),
    ]
)
"""One row per unit: its commit record."""


def to_segment(records: Iterable[UnitRecord]) -> bytes:
    """Encode records as a Parquet file of `SEGMENT_SCHEMA`."""
    table = pa.Table.from_pylist([record.model_dump() for record in records], schema=SEGMENT_SCHEMA)
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, SEGMENT_SCHEMA) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_segment(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a segment; all columns if `columns` is None.

    Raises:
        pa.ArrowException, OSError: the file is damaged.
    """
    # Read in this thread: a pyarrow thread that frees Python's bytes during interpreter shutdown aborts the process.
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True) as parquet:
        if not parquet.schema_arrow.equals(SEGMENT_SCHEMA):
            raise pa.ArrowInvalid("its columns are not those of a segment")
        return parquet.read(columns, use_threads=False)


def records_of(segment: pa.Table) -> list[UnitRecord]:
    """The records of a segment that was read with all columns.

    Raises:
        ValueError: a path in it is not a plain relative path.
    """
    return [_record(row) for row in segment.to_pylist()]


def _record(row: dict[str, Any]) -> UnitRecord:
    # Skip pydantic's validation, which is slow for a million records: the pages have checksums. Paths are checked all
    # the same, because the file may be untrusted.
    if not row["parts"]:
        raise ValueError("a unit has no part")
    for part in row["parts"]:
        for path in filter(None, (part["staged"], part["path"])):
            check_path(path)
    row["parts"] = [PartFile.model_construct(**part) for part in row["parts"]]
    row["quarantined"] = [Quarantined(**each) for each in row["quarantined"]]
    return UnitRecord.model_construct(**row)
