"""Label a unit: read, split, score, and stage its part as Parquet.

Plain Python without Ray; the actor wraps it. The part of the base group holds rows and scores, that of another group
keys and scores.
"""

import contextlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.corpus.plan import Unit
from pipeline.corpus.readers import UnitReader
from pipeline.corpus.records import Quarantined, Record
from pipeline.dataset.schema import ROW_FIELDS, SPANS, SPANS_SUFFIX, unit_schema
from pipeline.dataset.writer import parquet_writer
from pipeline.labelling.resolve import BASE_GROUP, ResolvedJob
from pipeline.labelling.workers.committed_records import CommittedReader
from pipeline.labelling.workers.label_records import KnownErrors, Scored, label_records, timed
from pipeline.labelling.workers.scoring import prepared
from pipeline.storage.open import open_storage
from scorers.contract import Scorer
from scorers.registry import build
from scorers.sentences import document
from scorers.text import utf8_size

_KEY_COLUMNS = ("source", "position")
_ROW_GROUP_BYTES = 64 * 1024 * 1024


def part_schema(columns: Sequence[str], spans: Collection[str] = (), *, base: bool) -> pa.Schema:
    """Schema of a group's part: `unit_schema` for the base group, keys, scores and spans for any other."""
    schema = unit_schema(columns, spans)
    if base:
        return schema
    return pa.schema([schema.field(name) for name in (*_KEY_COLUMNS, *schema.names[len(ROW_FIELDS) :])])


def row_groups(scored: Sequence[Scored]) -> Iterator[Sequence[Scored]]:
    """Cut rows into row groups in which no column reaches the 2 GiB limit of 32-bit offsets."""
    start = size = 0
    for index, each in enumerate(scored):
        size += len(each.record.text) + len(each.record.meta) + 8 * len(each.document.ends)
        size += sum(16 + len(finding.type) for found in each.spans.values() for finding in found or ())
        if size >= _ROW_GROUP_BYTES:
            yield scored[start : index + 1]
            start, size = index + 1, 0
    if start < len(scored):
        yield scored[start:]


def table_of(rows: Sequence[Scored], schema: pa.Schema) -> pa.Table:
    """Build a table of `schema` from rows."""
    values: dict[str, list[Any]] = {
        name: [getattr(each.record, name) for each in rows] for name in ("doc_id", "source", "position", "text", "meta")
    }
    values["ends"] = [each.document.ends for each in rows]
    for each in schema:
        if each.type.equals(SPANS):
            column = each.name.removesuffix(SPANS_SUFFIX)
            values[each.name] = [row.spans[column] for row in rows]
        elif each.name not in values:
            values[each.name] = [row.scores[each.name] for row in rows]
    return pa.Table.from_arrays([pa.array(values[each.name], each.type) for each in schema], schema=schema)


@dataclass(frozen=True)
class PartResult:
    """A part that a worker has staged.

    Attributes:
        unit, group, staged: index of the unit, group, and path of the file below the output.
        size, sha256: size in bytes and hash of the file.
        rows: records in the part.
        sentences: sentences of all rows.
        empty: rows with an empty text.
        bytes_text: UTF-8 bytes of the text of all rows.
        records: records read: `rows + len(quarantined)`.
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

    Numerical libraries use `execution.threads` threads, so that sums always have the same order.

    Raises:
        UserError: a scorer cannot be built on this machine.
    """

    def __init__(self, job: ResolvedJob, group: str) -> None:
        # Workers of a cluster start in another folder. If this one does not exist there, a relative input is reported
        # as missing when it is read.
        with contextlib.suppress(OSError):
            os.chdir(job.folder)
        config = self._config = job.config
        self._group = group
        self._holds_rows = group == BASE_GROUP and job.layer == 1
        self._columns = job.groups[group]
        self._purged = job.purged
        self._storage = open_storage(config.output)
        # Later layers read the rows of the first, because the inputs may be gone.
        self._reader: UnitReader | CommittedReader = (
            UnitReader(job.plan, config) if job.layer == 1 else CommittedReader(self._storage, job.plan, config)
        )
        self._spans = [column for column in self._columns if config.scorers[column].spans]
        self.scorers: dict[str, Scorer] = {}
        for column in self._columns:
            spec = config.scorers[column]
            self.scorers[column] = prepared(build(column, spec, config.execution.of(column)), spec, locating=spec.spans)
        # Warm up the splitter, which loads its library with the first document.
        document("A sentence.")
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(config.execution.threads)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the group's scorers by column."""
        return {column: scorer.fingerprint for column, scorer in self.scorers.items()}

    def read(self, unit: Unit) -> Iterator[Record | Quarantined]:
        """Yield the records of a unit; see `UnitReader.read`."""
        return self._reader.read(unit)

    def label(self, unit: Unit, staged: str, known_errors: KnownErrors | None = None) -> PartResult:
        """Read, split and score a unit, and stage its part, which has the same bytes in every run.

        Args:
            unit: a unit of the job's plan.
            staged: path below the output, for `Storage.open_write`.
            known_errors: see `label_records`.

        Raises:
            UserError: an input has changed since the plan was made.
            ScorerFailedError: a scorer fails on any document.
            OSError: reading or staging failed.
        """
        labelled = label_records(
            self.read(unit),
            self.scorers,
            max_document_size=self._config.max_document_size,
            large_documents=self._config.large_documents,
            keep_text=self._config.quarantine_text,
            known_errors=known_errors,
            purged=self._purged,
        )
        schema = part_schema(self._columns, self._spans, base=self._holds_rows)
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
