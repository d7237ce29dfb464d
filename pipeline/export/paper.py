"""Export a labelled dataset in the format of the datasets published by the authors of the PHF paper.

One row per document: `texts` (its sentences), `meta`, `scores` (one per sentence), `avg_score` (mean), `num_sents`.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset import LabelledDataset
from pipeline.dataset.manifest import DamagedError
from pipeline.dataset.spans import require_spans
from pipeline.export.documents import READ_ROWS, Exported, columns_read, documents
from pipeline.storage.base import Storage
from pipeline.storage.new_files import COMPRESSIONS, SUFFIXES, refuse_existing, staged, suffix_of, write_lines
from pipeline.storage.open import open_storage
from scorers.errors import UserError
from scorers.shell import phf
from scorers.stored import parse_json

SCHEMA = pa.schema(
    [
        pa.field("texts", pa.list_(pa.string()), nullable=False),
        pa.field("meta", pa.string(), nullable=False),
        pa.field("scores", pa.list_(pa.float64()), nullable=False),
        pa.field("avg_score", pa.float64()),
        pa.field("num_sents", pa.int64(), nullable=False),
    ]
)
"""The schema of a Parquet file. `meta` is a JSON string here, but an object in `.jsonl`."""

_ROW_GROUP_BYTES = 16_000_000
_PART_BYTES = 256_000_000

Row = dict[str, Any]


def export(
    dataset: LabelledDataset,
    column: str,
    output: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    redact: Sequence[str] = (),
) -> Exported:
    """Write a dataset with the scores of one column, in order and in bounded memory.

    A file appears complete or not at all; the Parquet files of a folder appear one after the other at the end.

    Args:
        dataset: the dataset.
        column: the column of the scores, which are written as their exact float32 values.
        output: a file .jsonl, .jsonl.gz, .jsonl.zst or .parquet, or a folder for Parquet files; local or on an object
            store. It must not exist, but a folder may be empty.
        progress: called with rows done and total rows.
        redact: columns with spans, whose findings in the texts are replaced by their types, as in `{{EMAIL}}`. `meta`
            is written as it is.

    Raises:
        UserError: a column or its spans do not exist, the output exists already, or its suffix is unsupported.
        DamagedError: the dataset is damaged.
        OSError: the disk or store failed.
    """
    dataset.require_column(column)
    for each in redact:
        require_spans(dataset, each)
    storage, name = _place(output)
    exported = Exported()
    rows = _count(_rows(dataset, column, redact, exported), exported, dataset.manifest.rows, progress)
    suffix = suffix_of(name, SUFFIXES)
    names: list[str] = []
    with staged(storage) as stage:
        if suffix in COMPRESSIONS:
            write_lines(stage(name), rows, COMPRESSIONS[suffix])
            names = [name]
        elif suffix == ".parquet":
            _write_parquet(stage(name), rows, None)
            names = [name]
        else:
            first = next(rows, None)
            while first is not None or not names:
                names.append(f"train-{len(names):05}.parquet")
                first = _write_parquet(stage(names[-1]), _chain(first, rows), _PART_BYTES)
        refuse_existing(storage, name, output)
    exported.files = tuple(names)
    return exported


def _place(output: str) -> tuple[Storage, str]:
    """Split an output into the storage of its folder and a file name; the name is empty for a folder."""
    last = output.rstrip("/").rpartition("/")[2]
    if suffix_of(last, SUFFIXES):
        parent = output.rstrip("/").removesuffix(last)
        storage, name = open_storage(parent or "."), last
    elif "." in last.strip(".") and last.rpartition(".")[2] in {"json", "gz", "zst", "csv", "txt", "arrow", "zip"}:
        raise UserError(
            f"{output}: phf writes .jsonl, .jsonl.gz, .jsonl.zst and .parquet, or a folder of Parquet files."
        )
    else:
        storage, name = open_storage(output), ""
    storage.check()
    refuse_existing(storage, name, output)
    return storage, name


def _rows(dataset: LabelledDataset, column: str, redact: Sequence[str], exported: Exported) -> Iterator[Row]:
    batches = dataset.read_batches(columns_read(column, redact), rows=READ_ROWS)
    for each in documents(dataset, batches, column, redact, exported):
        yield {
            "texts": each.sentences,
            "meta": _meta(dataset, each.meta),
            "scores": each.scores,
            "avg_score": float(np.mean(each.scores)) if each.scores else None,
            "num_sents": len(each.sentences),
        }


def _meta(dataset: LabelledDataset, text: str) -> dict[str, Any]:
    """The meta of a record; for a record that was read in this format, its original meta."""
    try:
        fields = parse_json(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise DamagedError(
            f"{dataset.uri} is damaged: the meta of a row is not a JSON object. Run `{phf('verify', dataset.uri)}` to "
            "find it."
        )
    if fields.keys() <= {"meta", "avg_score", "num_sents"} and "meta" in fields:
        inner = fields["meta"]
        if isinstance(inner, str):
            with contextlib.suppress(ValueError):
                inner = parse_json(inner)
        if isinstance(inner, dict):
            return inner
    return fields


def _count(
    rows: Iterable[Row], exported: Exported, total: int, progress: Callable[[int, int], None] | None
) -> Iterator[Row]:
    for row in rows:
        exported.documents += 1
        exported.sentences += row["num_sents"]
        if progress is not None and exported.documents % READ_ROWS == 0:
            progress(exported.documents + exported.left_out + exported.unsearched, total)
        yield row


def _chain(first: Row | None, rows: Iterator[Row]) -> Iterator[Row]:
    if first is not None:
        yield first
    yield from rows


def _write_parquet(file: AbstractContextManager[Any], rows: Iterator[Row], most: int | None) -> Row | None:
    """Write rows until they exceed `most` bytes; return the first row that was not written, None if all were."""
    with (
        file as sink,
        pa.PythonFile(sink, mode="w") as out,
        pq.ParquetWriter(
            out, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
        ) as writer,
    ):
        group: list[Row] = []
        size = written = 0
        for row in rows:
            if most is not None and written + size >= most:
                _write_group(writer, group)
                return row
            group.append({**row, "meta": json.dumps(row["meta"], ensure_ascii=False, separators=(",", ":"))})
            size += sum(map(len, row["texts"])) + 12 * row["num_sents"] + len(group[-1]["meta"])
            if size >= _ROW_GROUP_BYTES:
                _write_group(writer, group)
                written, size, group = written + size, 0, []
        _write_group(writer, group)
    return None


def _write_group(writer: pq.ParquetWriter, rows: list[Row]) -> None:
    if rows:
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=len(rows))
