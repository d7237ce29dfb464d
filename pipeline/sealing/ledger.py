"""Write the ledger: per unit, how many records were labelled, empty or quarantined, and the quarantine entries."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.records import Quarantined
from pipeline.dataset.manifest import File, Ledger
from pipeline.dataset.schema import LEDGER_SCHEMA, QUARANTINE_SCHEMA
from pipeline.job.unit_records import UnitRecord
from pipeline.sealing.staged import StagedFiles

_SEGMENT_ROWS = 65_536
_SEGMENT_TEXT_BYTES = 64_000_000


class LedgerWriter:
    """Collects units in order and writes them as Parquet segments; one segment is held in memory.

    Attributes:
        sentences, bytes_text: totals of the rows added so far; `bytes_text` in UTF-8 bytes.
    """

    def __init__(self, files: StagedFiles, folder: str) -> None:
        self._units = _Segments(files, f"{folder}/units", LEDGER_SCHEMA)
        self._quarantine = _Segments(files, f"{folder}/quarantine", QUARANTINE_SCHEMA)
        self._reasons: Counter[str] = Counter()
        self._count = self._records = self._labelled = self._empty = self._cut = 0
        self.sentences = self.bytes_text = 0

    def add_unit(self, record: UnitRecord, rows: pa.Table) -> None:
        """Add a unit; `rows` are its rows in the dataset."""
        text_bytes = pc.binary_length(rows.column("text")).to_numpy()
        empty = int((text_bytes == 0).sum())
        bytes_text = int(text_bytes.sum())
        sentences = pc.sum(pc.list_value_length(rows.column("ends"))).as_py() or 0
        reasons = Counter(each.reason for each in record.quarantined)
        self._units.add(
            {
                "unit": record.unit,
                "records": record.records,
                "labelled": rows.num_rows - empty,
                "empty": empty,
                "quarantined": sorted(reasons.items()),
                "sentences": sentences,
                "bytes_text": bytes_text,
            }
        )
        self._add_references(record.unit, record.quarantined)
        self._reasons += reasons
        self._count += 1
        self._records += record.records
        self._labelled += rows.num_rows - empty
        self._empty += empty
        self.sentences += sentences
        self.bytes_text += bytes_text

    def add_cut(self, sources: Iterable[Quarantined]) -> None:
        """Add the sources that could not be read to their end; see `Ledger.sources_cut`."""
        entries = list(sources)
        self._add_references(None, entries)
        self._cut += len(entries)

    def finish(self) -> Ledger:
        """Write the remaining rows and return the totals."""
        return Ledger(
            units=self._count,
            records=self._records,
            labelled=self._labelled,
            empty=self._empty,
            quarantined=dict(sorted(self._reasons.items())),
            sources_cut=self._cut,
            segments=self._units.finish(),
            quarantine=self._quarantine.finish(),
        )

    def _add_references(self, unit: int | None, entries: Iterable[Quarantined]) -> None:
        for each in entries:
            self._quarantine.add(
                {
                    "unit": unit,
                    "source": each.source,
                    "position": each.position,
                    "reason": each.reason,
                    "detail": each.detail,
                    "text": each.text,
                },
                len(each.text or ""),
            )


class _Segments:
    """Writes rows into Parquet files with bounded numbers of rows and bytes of text."""

    def __init__(self, files: StagedFiles, prefix: str, schema: pa.Schema) -> None:
        self._files = files
        self._prefix = prefix
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._text_bytes = 0
        self._written: list[File] = []

    def add(self, row: dict[str, Any], text_bytes: int = 0) -> None:
        self._rows.append(row)
        self._text_bytes += text_bytes
        if len(self._rows) >= _SEGMENT_ROWS or self._text_bytes >= _SEGMENT_TEXT_BYTES:
            self._flush()

    def finish(self) -> list[File]:
        if self._rows:
            self._flush()
        return self._written

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        path = f"{self._prefix}-{len(self._written):05d}.parquet"
        self._written.append(self._files.write_parquet(path, self._schema, [table]))
        self._rows, self._text_bytes = [], 0
