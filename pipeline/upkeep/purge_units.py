"""Remove records from the scored units: their rows and scores, and the texts that quarantine keeps of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.plan import Unit
from pipeline.corpus.records import Quarantined
from pipeline.dataset.schema import ROW_FIELDS, SCORES, SPANS
from pipeline.dataset.writer import parquet_writer
from pipeline.job.epoch import Epoch
from pipeline.job.purged import Key, tombstone
from pipeline.job.record import StoredJob
from pipeline.job.unit_records import PartFile, UnitRecord
from pipeline.job.unit_rows import read_part
from pipeline.job.unit_store import FOLDER_UNITS, UnitStore, layer_numbers
from pipeline.storage.checked_json import to_checked
from pipeline.storage.failpoints import failpoint
from pipeline.upkeep.purge_keys import units_of

_Figures = tuple[int, int, int]
"""Sentences, empty texts (0 or 1) and bytes of text of a row."""


@dataclass
class UnitPurger:
    """Removes records from committed units of every layer. A unit is replaced like one that was labelled again.

    The record of the unit is replaced first, then the parts that it names: a purge that dies in between leaves a unit
    that `phf verify` reports as damaged, and whose staged parts the next run moves into place.

    Attributes:
        epoch: this purge's claim to the output.
        job: the job.
        rewritten: number of parts that were rewritten.
        shared: replaced files that have other hard links.
    """

    epoch: Epoch
    job: StoredJob
    rewritten: int = 0
    shared: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Remove all records that the job has tombstones for.

        Raises:
            StoppedError: a newer run has claimed the output.
            IncompleteError: a part of a unit is damaged.
            OSError: the storage fails.
        """
        layers = layer_numbers(self.epoch.storage)
        for unit, keys in sorted(units_of(self.job.plan, self.job.purged).items()):
            self._purge(self.job.plan.units[unit], keys, layers)
        self._write_segments(layers)

    def _purge(self, unit: Unit, keys: set[Key], layers: Sequence[int]) -> None:
        storage = self.epoch.storage
        try:
            first = UnitStore(storage).read(unit.index)
        except FileNotFoundError:
            return
        figures = _figures(read_part(storage, first.parts[0]), keys)
        # The first layer last: the figures of the others come from its rows.
        for layer in sorted(layers, reverse=True):
            store = UnitStore(storage, layer)
            try:
                record = first if layer == 1 else store.read(unit.index)
            except FileNotFoundError:
                continue
            changed = self._without(store, unit, record, keys, figures)
            if changed != record:
                self._replace(store, changed, record)

    def _without(
        self, store: UnitStore, unit: Unit, record: UnitRecord, keys: set[Key], figures: Mapping[Key, _Figures]
    ) -> UnitRecord:
        parts, rows = [], set[Key]()
        for index, part in enumerate(record.parts):
            tables = read_part(self.epoch.storage, part)
            there = {key for table in tables for key in _keys(table)}
            rows = there if index == 0 else rows
            parts.append(self._rewrite(store, part, unit, tables, keys) if keys & there else part)
        gone = [figures.get(key, (0, 0, 0)) for key in keys & rows]
        update = {
            "parts": parts,
            "sentences": record.sentences - sum(each[0] for each in gone),
            "empty": record.empty - sum(each[1] for each in gone),
            "bytes_text": record.bytes_text - sum(each[2] for each in gone),
        }
        listed = {(each.source, each.position) for each in record.quarantined}
        if store.layer == 1:
            update["quarantined"] = self._buried(unit, record.quarantined, rows, keys & (rows | listed))
        else:
            # Later layers read the rows of the first, which this record is no longer among.
            update["quarantined"] = [each for each in record.quarantined if (each.source, each.position) not in keys]
            update["records"] = record.records - len(keys & (rows | listed))
        return record.model_copy(update=update)

    def _buried(self, unit: Unit, entries: Sequence[Quarantined], rows: set[Key], keys: set[Key]) -> list[Quarantined]:
        """The quarantine as if the unit were labelled now: the base group's entries in order, then the others'."""
        own = [each for each in entries if (each.source, each.position) not in rows | keys]
        others = [each for each in entries if (each.source, each.position) in rows - keys]
        order = {self.job.plan.sources[part.source].uri: index for index, part in enumerate(unit.slices)}
        own += map(tombstone, keys)
        return [*sorted(own, key=lambda each: (order[each.source], each.position)), *others]

    def _rewrite(
        self, store: UnitStore, part: PartFile, unit: Unit, tables: Sequence[pa.Table], keys: set[Key]
    ) -> PartFile:
        staged = f"{self.epoch.staging}/purge-{store.layer:04d}/{unit.name}.{part.group}.parquet"
        schema = _schema(tables[0].schema)
        kept = [table.filter(pa.array([key not in keys for key in _keys(table)], pa.bool_())) for table in tables]
        with (
            self.epoch.storage.open_write(staged) as sink,
            pa.PythonFile(sink, mode="w") as file,
            parquet_writer(file, schema) as writer,
        ):
            for table in kept:
                if table.num_rows:
                    writer.write_table(table.cast(schema), row_group_size=table.num_rows)
        rows = sum(table.num_rows for table in kept)
        return part.model_copy(update={"staged": staged, "size": sink.size, "sha256": sink.sha256, "rows": rows})

    def _replace(self, store: UnitStore, record: UnitRecord, old: UnitRecord) -> None:
        storage = self.epoch.storage
        self.epoch.check()
        storage.delete(store.segment_path(record.unit // FOLDER_UNITS))
        storage.put(store.record_path(record.unit), to_checked(record))
        failpoint("record-replaced")
        for part, before in zip(record.parts, old.parts, strict=True):
            if part != before:
                if storage.has_other_links(part.path):
                    self.shared.append(part.path)
                storage.move(part.staged, part.path)
                self.rewritten += 1
                failpoint("part-moved")

    def _write_segments(self, layers: Sequence[int]) -> None:
        """Write the segments that this purge, or one that died, has deleted."""
        for layer in layers:
            store = UnitStore(self.epoch.storage, layer)
            there = store.segments()
            committed = store.committed(len(self.job.plan.units))
            for folder in range(len(committed) // FOLDER_UNITS):
                first = folder * FOLDER_UNITS
                if folder not in there and committed[first : first + FOLDER_UNITS].all():
                    self.epoch.check()
                    store.write_segment(folder)


def _schema(read: pa.Schema) -> pa.Schema:
    """The schema that workers give a part with these columns; a schema that was read has more metadata."""
    rows = {field.name: field for field in ROW_FIELDS}
    added = {field.name: SPANS if field.type.equals(SPANS) else SCORES for field in read}
    return pa.schema([rows.get(name, pa.field(name, kind)) for name, kind in added.items()])


def _keys(table: pa.Table) -> list[Key]:
    return list(zip(table.column("source").to_pylist(), table.column("position").to_pylist(), strict=True))


def _figures(tables: Sequence[pa.Table], keys: set[Key]) -> dict[Key, _Figures]:
    found = {}
    for table in tables:
        sentences = pc.list_value_length(table.column("ends")).to_pylist()
        sizes = pc.binary_length(table.column("text")).to_pylist()
        for key, count, size in zip(_keys(table), sentences, sizes, strict=True):
            if key in keys:
                found[key] = (count, int(not size), size)
    return found
