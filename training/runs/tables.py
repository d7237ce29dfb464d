"""The tables of evaluations: names, schemas, and how they are written and read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.writer import parquet_writer
from scorers.errors import UserError
from scorers.shell import phf
from training.runs.folder import RunFolder
from training.runs.report import REPORT_NAME
from training.statistics import LARGEST

SAMPLES_NAME = "samples.parquet"
GUIDED_NAME = "guided.parquet"
HELD_OUT_NAME = "held_out.parquet"

SAMPLES_SCHEMA = pa.schema(
    [
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),
        pa.field("sentences", pa.int32(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
HELD_OUT_SCHEMA = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("bits", pa.float64(), nullable=False),
        pa.field("unigram_bits", pa.float64(), nullable=False),
        pa.field("misalignment", pa.float64(), nullable=False),
    ]
)

# Columns of the tables that must be finite. A document's `misalignment` may be NaN: it has no score then.
MEASURED = ("score", "bits", "unigram_bits", "reference_nats")
# Limit over all columns: tens of thousands of samples of a thousand tokens.
MOST_VALUES = 200_000_000


def write_table(path: Path, table: pa.Table) -> None:
    """Replace a Parquet file in one step."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as sink, parquet_writer(sink, table.schema) as writer:
            writer.write_table(table)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_table(path: Path, schema: pa.Schema, run: RunFolder, rows: int, command: str | None = None) -> pa.Table:
    """Read and check a table of an evaluation.

    Args:
        path: the Parquet file.
        schema: the expected schema.
        run: the evaluated run, for messages.
        rows: the number of rows according to the report.
        command: that writes the table; `phf evaluate RUN` by default.

    Raises:
        UserError: the table is missing, damaged, or of another version.
    """
    again = f"Run `{command or phf('evaluate', run.path)}` again."
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            if not parquet.schema_arrow.equals(schema):
                raise UserError(f"{path} was written by another version of phf. {again}")
            # Check before reading: a few bytes can encode any number of values.
            if parquet.metadata.num_rows != rows or _values(parquet.metadata) > MOST_VALUES:
                raise UserError(f"{path} does not belong to its {REPORT_NAME}. {again}")
            # Parquet calls the items of lists otherwise than Arrow.
            table = parquet.read().cast(schema)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is missing or damaged ({type(error).__name__}). {again}") from None
    nulls = any(table.column(field.name).null_count for field in schema if not field.nullable)
    if nulls or any(_holds_no_number(table.column(name)) for name in MEASURED if name in schema.names):
        raise UserError(f"{path} is damaged: it lacks values, or holds infinite or huge ones. {again}")
    return table


def _values(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.column(number).num_values for group in groups for number in range(group.num_columns))


def _holds_no_number(column: pa.ChunkedArray) -> bool:
    # Comparisons with NaN are false.
    return not bool((np.abs(column.drop_null().to_numpy()) <= LARGEST).all())
