"""Labels a unit: read, split, score, stage. Plain Python; an actor wraps it, and so do `phf preview` and tests.

A unit's part as Parquet: the rows and scores of the base group, or another group's keys and scores.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.config import LabelConfig
from pipeline.corpus.plan import Plan, Unit
from pipeline.corpus.readers import UnitReader
from pipeline.corpus.records import Quarantined, Record
from pipeline.dataset.schema import unit_schema
from pipeline.dataset.writer import parquet_writer
from pipeline.labelling.workers.committed import CommittedReader
from pipeline.labelling.workers.label_records import Scored, Spared, label_records, timed
from pipeline.storage.open import open_storage
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from scorers.text import utf8_size

_KEY_COLUMNS = ("source", "position")
_ROW_GROUP_BYTES = 64 * 1024 * 1024


def part_schema(columns: Sequence[str], *, base: bool) -> pa.Schema:
    """Schema of a group's part: `unit_schema` for the base group, keys and scores for another."""
    schema = unit_schema(columns)
    return schema if base else pa.schema([schema.field(name) for name in (*_KEY_COLUMNS, *columns)])


def row_groups(scored: Sequence[Scored]) -> Iterator[Sequence[Scored]]:
    """Rows cut so that no column of a row group reaches the 2 GiB that 32-bit offsets can address."""
    start = size = 0
    for index, each in enumerate(scored):
        size += len(each.record.text) + len(each.record.meta) + 8 * len(each.document.ends)
        if size >= _ROW_GROUP_BYTES:
            yield scored[start : index + 1]
            start, size = index + 1, 0
    if start < len(scored):
        yield scored[start:]


def table_of(rows: Sequence[Scored], schema: pa.Schema) -> pa.Table:
    """Rows as a table of a group's schema."""
    columns = {
        name: [getattr(each.record, name) for each in rows] for name in ("doc_id", "source", "position", "text", "meta")
    }
    values = columns | {"ends": [each.document.ends for each in rows]}
    arrays = [
        pa.array(values[each.name] if each.name in values else [row.scores[each.name] for row in rows], each.type)
        for each in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


BASE_GROUP = "cpu"


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
        layer: which layer of the dataset the parts are for; those after the first hold no rows, and score the first's.
    """

    config: LabelConfig
    plan: Plan
    specs: dict[str, ScorerSpec]
    groups: dict[str, list[str]]
    output: str
    folder: str = field(default_factory=os.getcwd)
    layer: int = 1


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
        self._holds_rows = group == BASE_GROUP and job.layer == 1
        self._columns = job.groups[group]
        self._storage = open_storage(job.output)
        # The rows of the first layer stand for the inputs, which may be gone by then.
        self._reader: UnitReader | CommittedReader = (
            UnitReader(job.plan, job.config) if job.layer == 1 else CommittedReader(self._storage, job.plan, job.config)
        )
        execution = job.config.execution
        self.scorers = {column: build(column, job.specs[column], execution.of(column)) for column in self._columns}
        # The splitter loads its library with its first document: part of starting, and not of the first unit's time.
        document("A sentence.")
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(execution.threads)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the group's scorers by column."""
        return {column: scorer.fingerprint for column, scorer in self.scorers.items()}

    def read(self, unit: Unit) -> Iterator[Record | Quarantined]:
        """The records of a unit; see `UnitReader.read`."""
        return self._reader.read(unit)

    def label(self, unit: Unit, staged: str, spared: Spared | None = None) -> PartResult:
        """Read, split and score a unit, and stage its part: the same bytes for the same unit, wherever and whenever.

        Args:
            unit: of the job's plan.
            staged: path below the output, for `Storage.open_write`.
            spared: see `label_records`.

        Raises:
            UserError: an input has changed since the plan was made.
            ScorerFailedError: a scorer fails whatever it is given.
            OSError: reading or staging failed.
        """
        labelled = label_records(
            self.read(unit),
            self.scorers,
            max_document_size=self._config.max_document_size,
            large_documents=self._config.large_documents,
            keep_text=self._config.quarantine_text,
            spared=spared,
        )
        schema = part_schema(self._columns, base=self._holds_rows)
        with (
            timed(labelled.seconds, "write"),
            self._storage.open_write(staged) as sink,
            pa.PythonFile(sink, mode="w") as file,
            parquet_writer(file, schema) as writer,
        ):
            for rows in row_groups(labelled.scored):
                writer.write_table(table_of(rows, schema), row_group_size=len(rows))
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
            bytes_text=sum(utf8_size(each.record.text) for each in scored),
            records=len(scored) + len(labelled.quarantined),
            quarantined=labelled.quarantined,
            seconds=labelled.seconds,
        )
