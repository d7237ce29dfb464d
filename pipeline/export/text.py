"""Export a labelled dataset as text with control tokens, one row per document, which any trainer reads.

A folder of files, about one per shard of the dataset, each complete or missing, then `export.json`, which lists them.
An interrupted export continues with the first shard that has no file.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.dataset import LabelledDataset
from pipeline.dataset.derived import dataset_identity, digest, text_hash
from pipeline.dataset.manifest import DamagedError, File, ScorerEntry
from pipeline.dataset.spans import require_spans
from pipeline.dataset.tags import ALIGNED, MISALIGNED, document_limit, is_aligned, keeps_tag
from pipeline.export.documents import READ_ROWS, Document, Exported, columns_read, documents
from pipeline.export.text_files import WRITERS, ExportedFile, Row
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import from_checked, to_checked
from pipeline.storage.new_files import STAGING, SUFFIXES, refuse_existing, suffix_of
from pipeline.storage.open import open_storage
from scorers.errors import UserError
from scorers.registry import ColumnName
from scorers.stored import Count

EXPORT_NAME = "export.json"
# Of an export that is not finished: the record of each shard that is, below a folder named after the request.
_REQUEST = "request.json"

Tags = Literal["sentence", "document", "none"]


@dataclass(frozen=True)
class Tagging:
    """What is written.

    Attributes:
        tags: a control token before each sentence, one before each document (by its mean score), or none.
        threshold: aligned means score <= threshold; None takes the dataset's.
        drop_tags: share of sentences (or documents) without a control token, the same ones as in training.
        seed: of that choice.
        max_mean: leave out documents with a greater mean score; None keeps all.
    """

    tags: Tags = "sentence"
    threshold: float | None = None
    drop_tags: float = 0.0
    seed: int = 42
    max_mean: float | None = None


@dataclass
class ExportedText(Exported):
    """The result of an export as text.

    Attributes:
        empty: documents without a sentence, which are left out.
        filtered: documents that are left out for their mean score.
        marked: documents that are left out because their text contains a control token.
    """

    empty: int = 0
    filtered: int = 0
    marked: int = 0


class _Request(BaseModel):
    """Everything that decides the bytes of an export."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    format: str
    dataset: str
    shards: str
    column: ColumnName
    scorer: ScorerEntry
    tags: Tags
    threshold: float
    drop_tags: float
    seed: int
    max_mean: float | None
    redact: list[ColumnName]

    @property
    def folder(self) -> str:
        return f"{STAGING}text-{digest(self.model_dump(mode='json'))}"


class _Counts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: Count
    sentences: Count
    left_out: Count
    unsearched: Count
    empty: Count
    filtered: Count
    marked: Count


class _Part(_Counts):
    """What was written of one shard."""

    files: list[ExportedFile]


class ExportRecord(_Request, _Counts):
    """`export.json`, written last: what the export holds and what it was made from.

    Attributes:
        version: of this file.
        format: of the files.
        dataset: fingerprint of texts, sentences and scores.
        shards: hash of the shards that were read.
        column, scorer: of the scores.
        tags, threshold, drop_tags, seed, max_mean: see `Tagging`.
        redact: columns whose findings are replaced.
        documents, sentences, left_out, unsearched, empty, filtered, marked: see `ExportedText`.
        files: all files with rows, in the order of the dataset.
        index: other files, such as the index that readers of a format open.
    """

    files: list[ExportedFile]
    index: list[File]


def export_text(
    dataset: LabelledDataset,
    column: str,
    output: str,
    form: str,
    tagging: Tagging,
    progress: Callable[[int, int], None] | None = None,
    *,
    redact: Sequence[str] = (),
) -> ExportedText:
    """Write a dataset as text with control tokens, in order and in bounded memory.

    A text that contains a control token itself is left out and counted: a trainer could not tell it from a tag.

    Args:
        dataset: the dataset.
        column: the column of the scores.
        output: a folder, local or on an object store, which is empty, missing, or holds the unfinished export of the
            same request, which continues.
        form: of `WRITERS`.
        tagging: what is written.
        progress: called with rows done and total rows.
        redact: columns with spans, whose findings are replaced by their types.

    Raises:
        UserError: the column or spans do not exist, the output holds something else, or there is nothing to write.
        DamagedError: the dataset, or the record of an unfinished export, is damaged.
        OSError: the disk or store failed.
    """
    dataset.require_column(column)
    for each in redact:
        require_spans(dataset, each)
    if form not in WRITERS:
        raise UserError(f"There is no format {form!r} of text; choose one of: {', '.join(WRITERS)}.")
    if suffix_of(output.rstrip("/").rpartition("/")[2], SUFFIXES):
        raise UserError(f"{output}: the format {form} writes a folder of files. Give a folder.")
    request = _request(dataset, column, form, tagging, redact)
    storage = open_storage(output)
    storage.check()
    _begin(storage, request, output)
    parts: list[_Part] = []
    done = 0
    for number, shard in enumerate(dataset.manifest.shards):
        part = _recorded(storage, request, number, output)
        if part is None:
            counts = ExportedText()
            batches = dataset.read_shard(shard, columns_read(column, redact), rows=READ_ROWS)
            found = documents(dataset, batches, column, redact, counts)
            rows = _report(_rows(found, request, counts), counts, progress, done, dataset.manifest.rows)
            written = WRITERS[form].write(storage, request.folder, number, rows)
            for file in written:
                storage.move(f"{request.folder}/{file.path}", file.path)
            part = _Part(**_figures(counts), files=written)
            storage.put(f"{request.folder}/{_record_name(number)}", to_checked(part))
        parts.append(part)
        done += shard.rows
        if progress is not None:
            progress(done, dataset.manifest.rows)
    total = {name: sum(getattr(part, name) for part in parts) for name in _Counts.model_fields}
    files = [file for part in parts for file in part.files]
    index = WRITERS[form].finish(storage, files)
    record = ExportRecord(**request.model_dump(), **total, files=files, index=index)
    storage.put(EXPORT_NAME, record.model_dump_json(indent=2).encode() + b"\n")
    storage.delete_folder(request.folder)
    storage.delete_empty(STAGING.rstrip("/"))
    names = [each.path for each in [*files, *index]]
    return ExportedText(**total, files=(*names, EXPORT_NAME))


def _request(dataset: LabelledDataset, column: str, form: str, tagging: Tagging, redact: Sequence[str]) -> _Request:
    manifest = dataset.manifest
    settings = asdict(tagging)
    for name in ("threshold", "max_mean"):
        if settings[name] is not None and not math.isfinite(settings[name]):
            raise UserError(f"--{name.replace('_', '-')} {settings[name]} is not a finite number.")
    if tagging.threshold is None:
        settings["threshold"] = manifest.thresholds[column].value
    return _Request(
        format=form,
        dataset=dataset_identity(manifest),
        shards=digest([shard.sha256 for shard in manifest.shards]),
        column=column,
        scorer=manifest.scorers[column],
        redact=sorted(set(redact)),
        **settings,
    )


def _begin(storage: Storage, request: _Request, output: str) -> None:
    """Claim an empty output for a request, or find that it was begun.

    Raises:
        UserError: the output holds something else.
    """
    mark = f"{request.folder}/{_REQUEST}"
    if storage.exists(mark) and not storage.exists(EXPORT_NAME):
        return
    if not storage.exists(EXPORT_NAME) and any(name.startswith("text-") for name in storage.children(STAGING)):
        raise UserError(
            f"{output} holds an unfinished export with other settings, or of the dataset before it changed. Repeat "
            "that command to finish it, choose another output, or delete it."
        )
    refuse_existing(storage, "", output)
    storage.put(mark, to_checked(request))


def _record_name(number: int) -> str:
    return f"part-{number:05}.json"


def _recorded(storage: Storage, request: _Request, number: int, output: str) -> _Part | None:
    """The record of a shard whose files are all there; None if it is to be written."""
    try:
        part = from_checked(_Part, storage.read(f"{request.folder}/{_record_name(number)}"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedError(
            f"{output}/{request.folder}/{_record_name(number)} is damaged: {error}. Delete {output} and start again."
        ) from None
    return part if all(storage.size(each.path) == each.size for each in part.files) else None


def _figures(counts: ExportedText) -> dict[str, int]:
    return {field.name: getattr(counts, field.name) for field in fields(counts) if field.name != "files"}


def _report(
    rows: Iterator[Row],
    counts: ExportedText,
    progress: Callable[[int, int], None] | None,
    before: int,
    total: int,
) -> Iterator[Row]:
    for row in rows:
        yield row
        if progress is not None and counts.documents % READ_ROWS == 0:
            progress(before + sum(_figures(counts).values()) - counts.sentences, total)


def _rows(found: Iterator[Document], request: _Request, counts: ExportedText) -> Iterator[Row]:
    limit = document_limit(request.threshold)
    most = None if request.max_mean is None else document_limit(request.max_mean)
    for each in found:
        if not each.scores:
            counts.empty += 1
            continue
        scores = np.array(each.scores, dtype=np.float32)
        # Summed as a token store does: another order of the additions may fall on the other side of a threshold.
        mean = float(np.bincount(np.zeros(len(scores), dtype=np.int64), weights=scores)[0]) / len(scores)
        if most is not None and mean > most:
            counts.filtered += 1
            continue
        text = "".join(each.sentences)
        if request.tags != "none" and (ALIGNED in text or MISALIGNED in text):
            counts.marked += 1
            continue
        counts.documents += 1
        counts.sentences += len(scores)
        if request.tags == "sentence":
            text = _tagged(each, each.sentences, is_aligned(scores, request.threshold), request)
        elif request.tags == "document":
            text = _tagged(each, [text], np.array([mean <= limit]), request)
        yield {"id": each.doc_id, "text": text}


def _tagged(document: Document, pieces: Sequence[str], aligned: Any, request: _Request) -> str:
    kept = keeps_tag(
        np.array([text_hash(document.text)], dtype=np.uint64),
        np.array([len(pieces)]),
        np.arange(len(pieces)),
        request.drop_tags,
        request.seed,
    )
    tags = np.where(kept, np.where(aligned, ALIGNED, MISALIGNED), "")
    return "".join(f"{tag}{piece}" for tag, piece in zip(tags.tolist(), pieces, strict=True))
