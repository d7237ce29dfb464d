"""Commit records of units, and the segments that hold a thousand of them in one file."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.corpus.records import Quarantined
from pipeline.dataset.writer import parquet_writer
from scorers.paths import RelativePath, check_path


class PartFile(BaseModel):
    """A part of a committed unit: where it was staged, empty where it never was, where it is, and what it holds."""

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
        unit: its index in the plan.
        epoch: of the driver that committed it.
        parts: one a group, the base group first. Rows that any group quarantined are in `quarantined` and, once the
            parts are joined, in the dataset no more.
        records: that were read, `quarantined` ones included.
        empty, sentences, bytes_text: of the base part's rows, before the other groups' quarantine is taken out.
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
"""A row a unit: its commit record."""


def to_segment(records: Iterable[UnitRecord]) -> bytes:
    """Records as one Parquet file of `SEGMENT_SCHEMA`."""
    table = pa.Table.from_pylist([record.model_dump() for record in records], schema=SEGMENT_SCHEMA)
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, SEGMENT_SCHEMA) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_segment(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a segment, all columns where `columns` is None.

    Raises:
        pa.ArrowException: the file is damaged.
        OSError: the same.
    """
    # In this thread alone: one of pyarrow's that lets go of Python's bytes at the interpreter's end aborts the process.
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True) as parquet:
        if not parquet.schema_arrow.equals(SEGMENT_SCHEMA):
            raise pa.ArrowInvalid("its columns are not those of a segment")
        return parquet.read(columns, use_threads=False)


def records_of(segment: pa.Table) -> list[UnitRecord]:
    """The records that a whole segment holds.

    Raises:
        ValueError: a path in it is no plain relative path.
    """
    return [_record(row) for row in segment.to_pylist()]


def _record(row: dict[str, Any]) -> UnitRecord:
    # What was checked when it was written need not be checked a million times: the pages have their checksums. But
    # whoever wrote it may be a stranger.
    if not row["parts"]:
        raise ValueError("a unit has no part")
    for part in row["parts"]:
        for path in filter(None, (part["staged"], part["path"])):
            check_path(path)
    row["parts"] = [PartFile.model_construct(**part) for part in row["parts"]]
    row["quarantined"] = [Quarantined(**each) for each in row["quarantined"]]
    return UnitRecord.model_construct(**row)
