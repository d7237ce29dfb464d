"""The tables in the folder of an evaluation, and which state of a run it is about."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scorers.errors import UserError
from scorers.shell import phf
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


def run_fingerprint(run: RunFolder) -> str:
    """A hash of `run.json`, which changes whenever the run is trained further or anew.

    It is of the fields that are in the file, so that one of an earlier version keeps its hash.
    """
    content = run.read_facts().model_dump_json(exclude={"status"}, exclude_unset=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_table(path: Path, schema: pa.Schema, run: RunFolder) -> pa.Table:
    """A table of an evaluation.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is missing or damaged ({type(error).__name__}). Run `{phf('evaluate', run.path)}` again."
        ) from None
    if not table.schema.equals(schema):
        raise UserError(f"{path} was written by another version of phf. Run `{phf('evaluate', run.path)}` again.")
    return table
