"""The tables in the folder of an evaluation, and which state of a run it is about."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scorers.errors import UserError
from scorers.shell import phf
from training.evaluation.report import REPORT_NAME
from training.run.folder import RunFolder

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


# What a sample scored and a document cost; a document's own misalignment is NaN where it has none.
MEASURED = ("score", "bits", "unigram_bits")
# Of all columns: tens of thousands of samples of a thousand tokens.
MOST_VALUES = 200_000_000


def run_fingerprint(run: RunFolder) -> str:
    """A hash of `run.json`, which changes whenever the run is trained further or anew.

    It is of the fields that are in the file, so that one of an earlier version keeps its hash.
    """
    content = run.read_facts().model_dump_json(exclude={"status"}, exclude_unset=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_table(path: Path, schema: pa.Schema, run: RunFolder, rows: int) -> pa.Table:
    """A table of an evaluation.

    Args:
        path: of the file.
        schema: that it has.
        run: whose it is.
        rows: that it has by its report.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    again = f"Run `{phf('evaluate', run.path)}` again."
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            if not parquet.schema_arrow.equals(schema):
                raise UserError(f"{path} was written by another version of phf. {again}")
            # Before it is read: a few bytes may stand for any number of values.
            if parquet.metadata.num_rows != rows or _values(parquet.metadata) > MOST_VALUES:
                raise UserError(f"{path} is not the one that its {REPORT_NAME} is about. {again}")
            table = parquet.read()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is missing or damaged ({type(error).__name__}). {again}") from None
    nulls = any(table.column(field.name).null_count for field in schema if not field.nullable)
    if nulls or any(_holds_no_number(table.column(name)) for name in MEASURED if name in schema.names):
        raise UserError(f"{path} is damaged: it lacks values, or holds infinite ones. {again}")
    return table


def _values(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.column(number).num_values for group in groups for number in range(group.num_columns))


def _holds_no_number(column: pa.ChunkedArray) -> bool:
    return not bool(np.isfinite(column.drop_null().to_numpy()).all())
