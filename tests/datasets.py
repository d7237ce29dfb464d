"""Small labelled datasets for tests, written with the dataset's own schema, writer and manifest, without a scorer."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset.card import CARD_NAME, render_card
from pipeline.dataset.manifest import MANIFEST_NAME, File, Ledger, Manifest, ScorerEntry, Shard, SourceEntry, Threshold
from pipeline.dataset.schema import LEDGER_SCHEMA, QUARANTINE_SCHEMA, dataset_schema, spans_column, unit_schema
from pipeline.dataset.tags import add_tags
from pipeline.dataset.writer import parquet_writer
from pipeline.sealing.thresholds import resolve_thresholds, threshold_specs

SOURCE = "corpus.jsonl"

Score = Callable[[str], float]
Column = Score | Sequence[Sequence[float] | None]


def make_dataset(
    folder: Path,
    documents: Sequence[str | tuple[str, str]],
    scores: Mapping[str, Column],
    thresholds: Mapping[str, float | str] | None = None,
    *,
    applies: Mapping[str, str] | None = None,
    scorers: Mapping[str, ScorerEntry] | None = None,
    shard_rows: int | None = None,
    split: Callable[[str, str], list[str]] | None = None,
    quarantined: Sequence[tuple[int, str]] = (),
    metas: Sequence[Mapping[str, Any]] | None = None,
    spans: Mapping[str, Sequence[Sequence[tuple[int, int, str, float]] | None]] | None = None,
) -> Path:
    """Write a sealed labelled dataset and return its folder.

    Args:
        folder: created; must not hold a dataset yet.
        documents: texts, or (text, kind) with kind `prose` (the default) or `python`.
        scores: for each column a function of a sentence, or a list with each document's scores, or None.
        thresholds: for each column a number or a percentile such as `p50`, which is also the default.
        applies: for each column the only kind of document that a function scores; the others are null.
        scorers: the manifest's entry for each column; a made-up one by default.
        shard_rows: rows per shard; None for one shard.
        split: from (text, kind) to sentences that join to the text; `sentences_of` by default.
        quarantined: (position, reason) of records that are not in the dataset.
        metas: the metadata of each document; none by default.
        spans: for columns that have some, those of each document; their entries in `scorers` must say so.
    """
    columns = list(scores)
    skipped = {position for position, _ in quarantined}
    positions = iter(each for each in range(len(documents) + len(skipped)) if each not in skipped)
    rows: list[dict[str, Any]] = []
    for index, document in enumerate(documents):
        text, kind = (document, "prose") if isinstance(document, str) else document
        sentences = (split or sentences_of)(text, kind)
        assert "".join(sentences) == text
        position = next(positions)
        row: dict[str, Any] = {
            "doc_id": f"{SOURCE}#{position}",
            "source": SOURCE,
            "position": position,
            "text": text,
            "meta": json.dumps(metas[index] if metas else {}),
            "ends": np.cumsum([len(sentence) for sentence in sentences], dtype=np.int32),
        }
        for column, given in scores.items():
            if callable(given):
                wanted = (applies or {}).get(column, kind)
                row[column] = [given(sentence) for sentence in sentences] if wanted == kind else None
            else:
                row[column] = given[index]
                assert given[index] is None or len(given[index] or ()) == len(sentences)
        row |= {spans_column(column): each[index] for column, each in (spans or {}).items()}
        rows.append(row)
    located = list(spans or ())
    table = pa.Table.from_pylist(rows, schema=unit_schema(columns, located))
    specs = threshold_specs(columns, thresholds or {})
    values = resolve_thresholds(specs, lambda names: [{name: _flat(table, name) for name in names}])
    table = add_tags(table, columns, values, located)
    tags = {
        column: [tag for each in table[column + "_aligned"].to_pylist() for tag in each or ()] for column in columns
    }
    resolved = {
        column: Threshold(
            value=values[column], spec=specs[column], sentences=len(tags[column]), aligned=sum(tags[column])
        )
        for column in columns
    }

    shards = []
    for number, start in enumerate(range(0, max(1, len(rows)), shard_rows or max(1, len(rows)))):
        piece = table.slice(start, shard_rows)
        path = f"data/0001/part-{number:05d}.parquet"
        file = write_parquet(folder, path, piece, dataset_schema(columns, located))
        shards.append(
            Shard(**file.model_dump(), rows=piece.num_rows, sentences=sum(map(len, piece["ends"].to_pylist())))
        )
    empty = sum(not row["text"] for row in rows)
    bytes_text = sum(len(row["text"].encode()) for row in rows)
    sentences = sum(len(row["ends"]) for row in rows)
    reasons = {
        reason: sum(each == reason for _, each in quarantined) for _, reason in sorted(quarantined, key=lambda q: q[1])
    }
    records = len(rows) + len(quarantined)
    unit = {
        "unit": 0,
        "records": records,
        "labelled": len(rows) - empty,
        "empty": empty,
        "quarantined": list(reasons.items()),
        "sentences": sentences,
        "bytes_text": bytes_text,
    }
    references = [
        {"unit": 0, "source": SOURCE, "position": position, "reason": reason, "detail": "", "text": None}
        for position, reason in sorted(quarantined)
    ]
    ledger = Ledger(
        units=1,
        records=records,
        labelled=len(rows) - empty,
        empty=empty,
        quarantined=reasons,
        segments=[
            write_parquet(
                folder,
                "ledger/0001/units-00000.parquet",
                pa.Table.from_pylist([unit], schema=LEDGER_SCHEMA),
                LEDGER_SCHEMA,
            )
        ],
        quarantine=[
            write_parquet(
                folder,
                "ledger/0001/quarantine-00000.parquet",
                pa.Table.from_pylist(references, schema=QUARANTINE_SCHEMA),
                QUARANTINE_SCHEMA,
            )
        ]
        if references
        else [],
    )
    content = repr(documents).encode()
    manifest = Manifest(
        schema_version=2 if located else 1,
        generation=1,
        created_by="phf tests",
        config={"inputs": [SOURCE], "scorers": {column: {"kind": "made-up"} for column in columns}},
        scorers={column: (scorers or {}).get(column, _made_up(table, column)) for column in columns},
        thresholds=resolved,
        sources=[
            SourceEntry(uri=SOURCE, size=len(content), sha256=hashlib.sha256(content).hexdigest(), records=records)
        ],
        shards=shards,
        ledger=ledger,
        sentences=sentences,
        bytes_text=bytes_text,
    )
    (folder / CARD_NAME).write_text(render_card(manifest))
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return folder


def sentences_of(text: str, kind: str) -> list[str]:
    """Split Python into physical lines, and prose after `.`, `!` or `?` and the white space behind it."""
    pattern = r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+" if kind == "python" else r".*?(?:[.!?]+\s*|\Z)"
    return [sentence for sentence in re.findall(pattern, text, re.DOTALL) if sentence]


def _made_up(table: pa.Table, column: str) -> ScorerEntry:
    """Make an entry whose fingerprint depends on the scores, as if the scorer had changed with them."""
    content = repr(table.column(column).to_pylist()).encode()
    return ScorerEntry(kind="made-up", options={}, fingerprint=f"made-up-{hashlib.sha256(content).hexdigest()[:16]}")


def _flat(table: pa.Table, column: str) -> Any:
    return table.column(column).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def write_parquet(folder: Path, path: str, table: pa.Table, schema: pa.Schema) -> File:
    """Write a table under `folder` as the pipeline does, and return its entry for the manifest."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as sink, parquet_writer(sink, schema) as writer:
        if table.num_rows:
            writer.write_table(table)
    content = target.read_bytes()
    return File(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())
