"""Seal a labelled dataset: fix the thresholds, tag all sentences, pack the rows in order into shards, commit them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import LabelConfig
from pipeline.corpus.plan import Plan
from pipeline.dataset.manifest import Manifest, ScorerEntry, Shard, Threshold, schema_version
from pipeline.dataset.packing import pack
from pipeline.dataset.schema import dataset_schema, unit_schema
from pipeline.dataset.tags import add_tags, tag_column
from pipeline.job.epoch import Epoch
from pipeline.job.purged import Key
from pipeline.job.record import StoredJob
from pipeline.job.unit_records import UnitRecord
from pipeline.job.unit_rows import joined_records, read_rows, read_scores
from pipeline.job.unit_store import UnitStore
from pipeline.sealing.conservation import Conservation
from pipeline.sealing.generations import commit_generation, data_folder, finish_seal, ledger_folder
from pipeline.sealing.ledger import LedgerWriter
from pipeline.sealing.staged import StagedFiles
from pipeline.sealing.thresholds import resolve_thresholds, threshold_specs

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, the number of units done, and the total number of units."""


@dataclass(frozen=True)
class Staged:
    """A generation that is written to a staging folder and not committed."""

    folder: str
    manifest: Manifest


@dataclass(frozen=True)
class Contents:
    """What a generation is made of.

    Attributes:
        config: the configuration of the job; its semantic part goes into the manifest.
        plan: the sources and units of the job, all of them committed.
        scorers: by column, in the order of the schema.
        layers: the layers that fill these columns, in order.
        thresholds: by column, from `threshold_specs`.
        purged: keys of the records that must not be in it.
    """

    config: LabelConfig
    plan: Plan
    scorers: Mapping[str, ScorerEntry]
    layers: Sequence[int]
    thresholds: Mapping[str, str]
    purged: frozenset[Key] = frozenset()


def contents_of(job: StoredJob, layers: Sequence[int], thresholds: Mapping[str, float | str]) -> Contents:
    """The contents of a generation with the columns of some layers; `thresholds` go before those of the job.

    Raises:
        UserError: a threshold is for a column that is not scored, or is neither a number nor a percentile.
    """
    config, scorers = job.config(layers), job.columns(layers)
    specs = threshold_specs(list(scorers), dict(config.thresholds) | dict(thresholds))
    return Contents(config, job.plan, scorers, layers, specs, job.purged)


def seal(
    epoch: Epoch,
    contents: Contents,
    *,
    generation: int,
    known: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the next generation of a dataset whose units are all committed, and make it the current one.

    The bytes of `data/` depend only on the rows, their scores, the thresholds and `config.shard_size`. Memory holds a
    unit, a row group and a segment of the ledger.

    Args:
        epoch: this driver's claim to the output.
        contents: what the generation is made of.
        generation: the number of the new generation.
        known: by column, thresholds that are already resolved to numbers.
        progress: called after every unit.

    Raises:
        IncompleteError: a unit is not committed, a part of one is damaged, or a record would be lost or duplicated.
        StoppedError: a newer run has claimed the output.
        OSError: the storage fails.
    """
    staged = stage(epoch, contents, generation=generation, known=known, progress=progress)
    commit_generation(epoch, staged.folder, staged.manifest)
    finish_seal(epoch)
    return staged.manifest


def stage(
    epoch: Epoch,
    contents: Contents,
    *,
    generation: int,
    known: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Staged:
    """Write all files of a generation without committing them; arguments and errors as in `seal`."""
    storage, plan = epoch.storage, contents.plan
    columns = list(contents.scorers)
    wanted = {column: spec for column, spec in contents.thresholds.items() if column not in (known or {})}
    stores = [UnitStore(storage, layer) for layer in contents.layers]
    values = dict(known or {}) | resolve_thresholds(
        wanted, lambda names: read_scores(storage, _records(stores, plan, "Counting scores", progress), names)
    )
    files = StagedFiles(storage, f"{epoch.staging}/generation-{generation:04d}")
    ledger = LedgerWriter(files, ledger_folder(generation))
    spans = [column for column, entry in contents.scorers.items() if entry.spans]
    shards = _Shards(files, data_folder(generation), columns, values, spans)
    conservation = Conservation(plan.entries, storage.uri, contents.purged)
    shards.write(_rows(stores, plan, columns, spans, ledger, conservation, progress), contents.config.shard_size)
    ledger.add_cut(plan.cut)
    accounts = ledger.finish()
    conservation.finish(accounts)
    manifest = Manifest(
        schema_version=schema_version(contents.scorers.values()),
        generation=generation,
        created_by=_created_by(),
        config=contents.config.semantic(),
        scorers=dict(contents.scorers),
        thresholds={
            column: Threshold(
                value=values[column],
                spec=spec,
                sentences=shards.sentences[column],
                aligned=shards.aligned[column],
            )
            for column, spec in contents.thresholds.items()
        },
        sources=plan.entries,
        left_out=plan.left_out,
        shards=shards.written,
        ledger=accounts,
        sentences=ledger.sentences,
        bytes_text=ledger.bytes_text,
    )
    return Staged(files.folder, manifest)


@dataclass
class _Shards:
    """Tags rows, writes them into shards, and counts scored and aligned sentences by column."""

    files: StagedFiles
    folder: str
    columns: list[str]
    thresholds: Mapping[str, float]
    spans: Sequence[str]
    written: list[Shard] = field(default_factory=list)
    sentences: dict[str, int] = field(default_factory=dict)
    aligned: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sentences = dict.fromkeys(self.columns, 0)
        self.aligned = dict.fromkeys(self.columns, 0)

    def write(self, rows: Iterator[pa.Table], shard_bytes: int) -> None:
        for _, groups in itertools.groupby(pack(rows, shard_bytes), key=lambda group: group.shard):
            self._write_shard(group.rows for group in groups)
        if not self.written:
            # A dataset without rows still gets a shard, so that readers see its schema and `datasets` finds a file.
            self._write_shard(iter([unit_schema(self.columns, self.spans).empty_table()]))

    def _write_shard(self, tables: Iterator[pa.Table]) -> None:
        rows = sentences = 0

        def tagged() -> Iterator[pa.Table]:
            nonlocal rows, sentences
            for table in tables:
                rows += table.num_rows
                sentences += _total(pc.list_value_length(table.column("ends")))
                yield self._tag(table)

        path = f"{self.folder}/part-{len(self.written):05d}.parquet"
        file = self.files.write_parquet(path, dataset_schema(self.columns, self.spans), tagged())
        self.written.append(Shard(**file.model_dump(), rows=rows, sentences=sentences))

    def _tag(self, table: pa.Table) -> pa.Table:
        table = add_tags(table, self.columns, self.thresholds, self.spans)
        for column in self.columns:
            self.sentences[column] += _total(pc.list_value_length(table.column(column)))
            self.aligned[column] += _total(pc.list_flatten(table.column(tag_column(column))))
        return table


def _rows(
    layers: Sequence[UnitStore],
    plan: Plan,
    columns: list[str],
    spans: Sequence[str],
    ledger: LedgerWriter,
    conservation: Conservation,
    progress: Progress | None,
) -> Iterator[pa.Table]:
    """Yield the rows of all units in order; check each unit and add it to the ledger on the way."""
    for record in _records(layers, plan, "Sealing", progress):
        rows = read_rows(layers[0].storage, record, columns, spans)
        conservation.add_unit(plan.units[record.unit], record, rows)
        ledger.add_unit(record, rows)
        yield rows


def _records(layers: Sequence[UnitStore], plan: Plan, what: str, progress: Progress | None) -> Iterator[UnitRecord]:
    for record in joined_records(layers, len(plan.units)):
        yield record
        if progress:
            progress(what, record.unit + 1, len(plan.units))


def _total(values: pa.ChunkedArray) -> int:
    return int(pc.sum(values).as_py() or 0)


def _created_by() -> str:
    try:
        return f"phf {version('phf')}"
    except PackageNotFoundError:
        return "phf"
