"""Labels a unit: read, split, score, stage. Plain Python; an actor wraps it, and so do `phf preview` and tests."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import LabelConfig
from pipeline.corpus.plan import Plan, Unit
from pipeline.corpus.readers import UnitReader
from pipeline.corpus.records import Quarantined, Record
from pipeline.dataset.schema import unit_schema
from pipeline.dataset.writer import parquet_writer
from pipeline.labelling.scoring import score_documents
from pipeline.storage import Storage
from scorers.contract import Document, Execution, Scorer, ScoringError
from scorers.isolation import describe
from scorers.registry import ScorerSpec, build
from scorers.sentences import document

BASE_GROUP = "cpu"
SPLIT_ERROR = "split-error"

_KEY_COLUMNS = ("source", "position")
_ROW_GROUP_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know.

    Attributes:
        config: of the job.
        plan: sources and fingerprints; a worker is handed its units one by one and needs none here.
        specs: by column, resolved.
        groups: columns by group, the base group first; its parts hold the rows, the others' only keys and scores.
        output: URI of the dataset.
        folder: working folder of the driver, from which relative inputs start.
    """

    config: LabelConfig
    plan: Plan
    specs: dict[str, ScorerSpec]
    groups: dict[str, list[str]]
    output: str
    folder: str = field(default_factory=os.getcwd)


@dataclass(frozen=True)
class PartResult:
    """What a worker tells of a part that it staged.

    Attributes:
        unit, group, staged: whose part, and where it is below the output.
        size, sha256: of the file.
        rows: records in the part.
        sentences: of all rows.
        empty: rows whose text is empty.
        bytes_text: UTF-8 bytes of all rows' text.
        records: all that were read: `rows + len(quarantined)`.
        quarantined: in the order of the unit.
        seconds: by column, and for `read`, `split` and `write`.
    """

    unit: int
    group: str
    staged: str
    size: int
    sha256: str
    rows: int
    sentences: int
    empty: int
    bytes_text: int
    records: int
    quarantined: list[Quarantined]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Scored:
    """A record with its document and its scores by column: float32 [n_sentences], None where a scorer doesn't apply."""

    record: Record
    document: Document
    scores: dict[str, NDArray[np.float32] | None]


@dataclass
class Labelled:
    """What became of some records, each list in their order, and the seconds by column, for `read` and `split`."""

    scored: list[Scored] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def label_records(
    records: Iterable[Record | Quarantined], scorers: Mapping[str, Scorer], *, keep_text: bool = False
) -> Labelled:
    """Split and score records; one that a scorer cannot score is quarantined and changes nothing for the others.

    Args:
        records: all of a unit: scorers get all documents at once, and scores may depend on the set in the last bits.
        scorers: by column; of several that fail on a record the first gives the reason.
        keep_text: whether quarantine keeps the text.

    Raises:
        ScorerFailedError: a scorer fails whatever it is given.
    """
    labelled = Labelled()
    with _timed(labelled.seconds, "read"):
        items = list(records)
    with _timed(labelled.seconds, "split"):
        outcomes = [each if isinstance(each, Quarantined) else _split(each) for each in items]
    documents = [each for each in outcomes if isinstance(each, Document)]
    columns: dict[str, Iterator[NDArray[np.float32] | ScoringError | None]] = {}
    for column, scorer in scorers.items():
        with _timed(labelled.seconds, column):
            columns[column] = iter(_score_column(scorer, documents))
    for record, outcome in zip(items, outcomes, strict=True):
        if isinstance(record, Quarantined):
            labelled.quarantined.append(record)
            continue
        scores: dict[str, NDArray[np.float32] | None] = {}
        error = outcome if isinstance(outcome, ScoringError) else None
        if isinstance(outcome, Document):
            for column, results in columns.items():
                result = next(results)
                if isinstance(result, ScoringError):
                    error = error or ScoringError(result.reason, f"{column}: {result.detail}")
                else:
                    scores[column] = result
            if error is None:
                labelled.scored.append(Scored(record, outcome, scores))
        if error is not None:
            text = record.text if keep_text else None
            labelled.quarantined.append(Quarantined(record.source, record.position, error.reason, error.detail, text))
    return labelled


class UnitLabeller:
    """Labels units of one job with the scorers of one group, which it builds once.

    Numerical libraries compute with `execution.threads` threads, so that sums always have the same order.

    Raises:
        UserError: a scorer cannot be built here.
    """

    def __init__(self, job: Job, group: str) -> None:
        # Workers of a cluster start elsewhere. Where there is no such folder, a relative input says that it is missing.
        with contextlib.suppress(OSError):
            os.chdir(job.folder)
        self._config = job.config
        self._group = group
        self._columns = job.groups[group]
        self._storage = Storage.open(job.output)
        self._reader = UnitReader(job.plan, job.config)
        self.scorers = {column: build(column, job.specs[column], _execution(job, column)) for column in self._columns}
        # The splitter loads its library with its first document: part of starting, and not of the first unit's time.
        document("A sentence.")
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(job.config.execution.threads)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the group's scorers by column."""
        return {column: scorer.fingerprint for column, scorer in self.scorers.items()}

    def label(self, unit: Unit, staged: str) -> PartResult:
        """Read, split and score a unit, and stage its part: the same bytes for the same unit, wherever and whenever.

        Args:
            unit: of the job's plan.
            staged: path below the output, for `Storage.open_write`.

        Raises:
            UserError: an input has changed since the plan was made.
            ScorerFailedError: a scorer fails whatever it is given.
            OSError: reading or staging failed.
        """
        labelled = label_records(self._reader.read(unit), self.scorers, keep_text=self._config.quarantine_text)
        schema = part_schema(self._columns, base=self._group == BASE_GROUP)
        with (
            _timed(labelled.seconds, "write"),
            self._storage.open_write(staged) as sink,
            pa.PythonFile(sink, mode="w") as file,
            parquet_writer(file, schema) as writer,
        ):
            for rows in _row_groups(labelled.scored):
                writer.write_table(_table(rows, schema), row_group_size=len(rows))
        scored = labelled.scored
        return PartResult(
            unit=unit.index,
            group=self._group,
            staged=staged,
            size=sink.size,
            sha256=sink.sha256,
            rows=len(scored),
            sentences=sum(len(each.document.ends) for each in scored),
            empty=sum(not each.record.text for each in scored),
            bytes_text=sum(_utf8_size(each.record.text) for each in scored),
            records=len(scored) + len(labelled.quarantined),
            quarantined=labelled.quarantined,
            seconds=labelled.seconds,
        )


def part_schema(columns: Sequence[str], *, base: bool) -> pa.Schema:
    """Schema of a group's part: `unit_schema` for the base group, keys and scores for another."""
    schema = unit_schema(columns)
    return schema if base else pa.schema([schema.field(name) for name in (*_KEY_COLUMNS, *columns)])


def _execution(job: Job, column: str) -> Execution:
    execution = job.config.execution
    return Execution(
        device=execution.devices.get(column, "cpu"),
        threads=execution.threads,
        batch_tokens=execution.batch_tokens,
        deadline_s=execution.deadline_s,
    )


def _split(record: Record) -> Document | ScoringError:
    try:
        return document(record.text, record.kind, record.name)
    except Exception as error:  # noqa: BLE001 - a failure of a library on strange input becomes a value
        return ScoringError(SPLIT_ERROR, describe(error))


def _score_column(scorer: Scorer, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError | None]:
    results: list[NDArray[np.float32] | ScoringError | None] = [None] * len(documents)
    wanted = []
    for index, each in enumerate(documents):
        try:
            applies = scorer.applies(each)
        except Exception as error:  # noqa: BLE001 - a failure of a library on strange input becomes a value
            results[index] = ScoringError("scorer-error", describe(error))
            continue
        if applies and len(each.ends):
            wanted.append(index)
        elif applies:
            results[index] = np.zeros(0, np.float32)
    if wanted:
        for index, result in zip(wanted, score_documents(scorer, [documents[each] for each in wanted]), strict=True):
            results[index] = result
    return results


def _row_groups(scored: Sequence[Scored]) -> Iterator[Sequence[Scored]]:
    """Rows cut so that no column of a row group reaches the 2 GiB that 32-bit offsets can address."""
    start = size = 0
    for index, each in enumerate(scored):
        size += len(each.record.text) + len(each.record.meta) + 8 * len(each.document.ends)
        if size >= _ROW_GROUP_BYTES:
            yield scored[start : index + 1]
            start, size = index + 1, 0
    if start < len(scored):
        yield scored[start:]


def _table(rows: Sequence[Scored], schema: pa.Schema) -> pa.Table:
    columns = {
        name: [getattr(each.record, name) for each in rows] for name in ("doc_id", "source", "position", "text", "meta")
    }
    values = columns | {"ends": [each.document.ends for each in rows]}
    arrays = [
        pa.array(values[each.name] if each.name in values else [row.scores[each.name] for row in rows], each.type)
        for each in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
