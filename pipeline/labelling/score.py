"""Add score columns to a labelled dataset as a new layer, without scoring the existing columns again."""

from pipeline.config import ScoreConfig
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.schema import spans_column
from pipeline.job.epoch import Epoch
from pipeline.job.record import JobRecord, LayerRecord, StoredJob, layer_path, load_job, refuse_purging
from pipeline.labelling.label import Summary
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.monitoring.logs import RunLog
from pipeline.labelling.on_ray.cluster import check_address, check_metrics_port
from pipeline.labelling.resolve import resolve_config, resolve_layer, scorer_entries
from pipeline.labelling.run import NOTHING_LOST, Run, RunContext
from pipeline.sealing.current import current_manifest
from pipeline.sealing.extent import EXTEND, LABEL, extent_of, unfinished
from pipeline.sealing.generations import finish_seal, sealed_manifest
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import to_checked
from pipeline.storage.failures import storage_failures
from pipeline.storage.open import open_storage
from scorers.errors import IncompleteError, UserError
from scorers.registry import ScorerSpec, check_recorded
from scorers.shell import phf
from scorers.stopping import stoppable


def run_score(config: ScoreConfig, reporter: Reporter, log: RunLog | None = None) -> Summary:
    """Score the rows of a dataset, commit unit by unit, and seal a generation with the new columns.

    Resumes where an earlier run with the same scorers stopped. The current generation stays until the new one is
    sealed. A record that a new scorer cannot score moves from the dataset to quarantine. Call it in the main thread.

    Raises:
        UserError: refused before anything is written: no finished dataset, a column that already exists or was begun
            with another threshold, invalid settings or scorers.
        IncompleteError: some units could not be scored, or a disk or store failed; the other units are committed.
        StoppedError: stopped by a signal or a newer driver; committed units are kept.
    """
    storage = open_storage(config.dataset)
    with stoppable(NOTHING_LOST):
        context = RunContext(reporter, log or RunLog(None))
        storage.check()
        if config.execution.address:
            check_address(config.execution.address)
        if config.execution.metrics_port is not None:
            check_metrics_port(config.execution.metrics_port, config.execution.address)
        with storage_failures(storage):
            current = current_manifest(storage)
            job = load_job(storage)
            refuse_purging(storage, job.record)
            _check_complete(job)
        reporter.step("Loading the scorers")
        record = _record(job, current, config)
        context.timer.lap("prepare")
        with storage_failures(storage):
            _refuse_other_settings(job, current, record)
            if all(
                current.scorers.get(column) in (entry, entry.model_copy(update={"spans": True}))
                for column, entry in record.scorers.items()
            ):
                if sealed_manifest(storage) is None:
                    finish_seal(Epoch.claim(storage))
                return Summary(storage.uri, current, None, context.timer.seconds, unfinished=unfinished(storage))
            _refuse_taken(storage, current, record)
            layer, record = _layer(job, record)
            epoch = Epoch.claim(storage)
            storage.put_if_absent(layer_path(layer), to_checked(record, indent=2))
            job = load_job(storage)
            if job.layers[layer - 2] != record:
                raise IncompleteError(
                    f"Another `phf score` of {storage.uri} has just begun. Run the same command again once it is done."
                )
            resolved = resolve_layer(job, layer, config.execution)
            run = Run(job, epoch, context)
            # A layer that was begun before others were finished comes before them, as if nothing had interrupted it.
            manifest = run.finish(sorted([*job.layers_of(current.scorers), layer]), label=[resolved])
            return Summary(
                storage.uri,
                manifest,
                run.progress,
                context.timer.seconds,
                tuple(record.scorers),
                unfinished=unfinished(storage),
            )


def _check_complete(job: StoredJob) -> None:
    for step in extent_of(job).unfinished:
        if step.command in (LABEL, EXTEND):
            raise UserError(f"{job.storage.uri} is not completely labelled: {step} Then add columns.")


def _record(job: StoredJob, current: Manifest, config: ScoreConfig) -> LayerRecord:
    base, of_spans = job.config([1]), _of_spans(job, current, config)
    resolved = resolve_config(
        base.model_copy(
            update={
                "scorers": {**config.scorers, **of_spans},
                "thresholds": config.thresholds,
                "execution": config.execution,
            }
        )
    )
    entries = scorer_entries(resolved.scorers, config.execution)
    for column in of_spans:
        if entries[column].without_spans() != current.scorers[column].without_spans():
            raise UserError(
                f"The scorer {column!r} is not the one that scored {job.storage.uri}: its fingerprint was "
                f"{current.scorers[column].fingerprint}, now {entries[column].fingerprint}: its libraries, weights or "
                f"code have changed. Score a new column with its spans: --scorer {column}_2={entries[column].kind} "
                f"--spans {column}_2."
            )
    located = [
        column
        for column, entry in entries.items()
        if entry.spans and current.scorers.get(column) == entry.without_spans()
    ]
    # A column keeps its threshold.
    kept = {column: current.thresholds[column].spec for column in located if column not in config.thresholds}
    thresholds = {column: str(spec) for column, spec in resolved.thresholds.items()} | kept
    return LayerRecord(scorers=entries, thresholds=thresholds, located=located)


def _of_spans(job: StoredJob, current: Manifest, config: ScoreConfig) -> dict[str, ScorerSpec]:
    """The scorers of the columns of the dataset to which spans are to be added."""
    for column in config.spans:
        if column not in current.scorers:
            raise UserError(
                f"--spans {column}: {job.storage.uri} has no score column of that name; it has: "
                f"{', '.join(current.scorers)}. To add it, give its scorer too: --scorer {column}=KIND"
            )
        entry = current.scorers[column]
        check_recorded(column, entry.spec, entry.fingerprint, config.execution.trusted_sha256)
    return {
        column: current.scorers[column].spec.model_copy(update={"spans": True})
        for column in config.spans
        if not current.scorers[column].spans
    }


def _refuse_taken(storage: Storage, current: Manifest, record: LayerRecord) -> None:
    filled = {spans_column(column): f"the spans of {column!r}" for column in current.spans}
    for column, entry in record.scorers.items():
        if column in current.scorers and column not in record.located:
            raise UserError(
                f"{storage.uri} already has a column {column!r} from another scorer or another version of it "
                f"({current.scorers[column].kind}). Name the new one differently, such as --scorer {column}_2=…"
            )
        for name in (column, *([spans_column(column)] if entry.spans else [])):
            if name in filled or (name != column and name in current.scorers):
                raise UserError(
                    f"{storage.uri} already has a column {name!r}, of {filled.get(name, 'scores')}. Name the new one "
                    f"differently, such as --scorer {column}_2=…"
                )


def _refuse_other_settings(job: StoredJob, current: Manifest, given: LayerRecord) -> None:
    """Refuse thresholds or spans that differ, for columns that these scorers have filled or begun to fill."""
    records: list[JobRecord | LayerRecord] = [job.record, *job.layers]
    lines, wanted = [], []
    for column, entry in given.scorers.items():
        same = [
            each
            for each in records
            if (other := each.scorers.get(column)) and other.without_spans() == entry.without_spans()
        ]
        if column not in current.scorers and same and all(each.scorers[column].spans != entry.spans for each in same):
            raise UserError(
                f"{job.storage.uri} was begun with other settings:\n  scorers.{column}.spans: was {not entry.spans}, "
                f"now {entry.spans}\nGive the same settings to resume. Spans can be added once the column is there."
            )
        begun = [each.thresholds.get(column) for each in same]
        there = current.scorers.get(column)
        now = [current.thresholds[column].spec] if there and there.without_spans() == entry.without_spans() else []
        if begun and given.thresholds[column] not in [*begun, *now]:
            lines.append(f"  thresholds.{column}: was {(now or begun)[0]!r}, now {given.thresholds[column]!r}")
            wanted += ["--threshold", f"{column}={given.thresholds[column]}"]
    if lines:
        raise UserError(
            f"{job.storage.uri} was begun with other settings:\n" + "\n".join(lines) + "\nGive the same thresholds. To "
            f"change those of finished columns: {phf('retag', job.storage.uri, *wanted)}"
        )


def _layer(job: StoredJob, record: LayerRecord) -> tuple[int, LayerRecord]:
    """The layer that an earlier run with the same scorers began, or the next one: its number and its record."""
    for number, layer in enumerate(job.layers, start=2):
        # `phf retag` may have changed the threshold of a column that is there already.
        kept = {column: layer.thresholds[column] for column in record.located if column in layer.thresholds}
        if layer == record.model_copy(update={"thresholds": record.thresholds | kept}):
            return number, layer
    return len(job.layers) + 2, record
