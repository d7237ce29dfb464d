"""Add score columns to a labelled dataset as a new layer, without scoring the existing columns again."""

from collections.abc import Mapping

from pipeline.config import ScoreConfig
from pipeline.dataset.manifest import Manifest
from pipeline.job.epoch import Epoch
from pipeline.job.record import JobRecord, LayerRecord, StoredJob, layer_path, load_job
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
            _check_complete(job)
        reporter.step("Loading the scorers")
        record = _record(job, config)
        context.timer.lap("prepare")
        with storage_failures(storage):
            _refuse_other_thresholds(job, current, record)
            if all(current.scorers.get(column) == entry for column, entry in record.scorers.items()):
                if sealed_manifest(storage) is None:
                    finish_seal(Epoch.claim(storage))
                return Summary(storage.uri, current, None, context.timer.seconds, unfinished=unfinished(storage))
            _refuse_taken(storage, current, record.scorers)
            layer = _layer(job, record)
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


def _record(job: StoredJob, config: ScoreConfig) -> LayerRecord:
    base = job.config([1])
    resolved = resolve_config(
        base.model_copy(
            update={"scorers": config.scorers, "thresholds": config.thresholds, "execution": config.execution}
        )
    )
    thresholds = {column: str(spec) for column, spec in resolved.thresholds.items()}
    return LayerRecord(scorers=scorer_entries(resolved.scorers, config.execution), thresholds=thresholds)


def _refuse_taken(storage: Storage, current: Manifest, scorers: Mapping[str, object]) -> None:
    for column in scorers:
        if column in current.scorers:
            raise UserError(
                f"{storage.uri} already has a column {column!r} from another scorer or another version of it "
                f"({current.scorers[column].kind}). Name the new one differently, such as --scorer {column}_2=…"
            )


def _refuse_other_thresholds(job: StoredJob, current: Manifest, given: LayerRecord) -> None:
    """Refuse thresholds that differ, for columns that these scorers have filled or begun to fill."""
    records: list[JobRecord | LayerRecord] = [job.record, *job.layers]
    lines, wanted = [], []
    for column, entry in given.scorers.items():
        begun = [each.thresholds.get(column) for each in records if each.scorers.get(column) == entry]
        now = [current.thresholds[column].spec] if current.scorers.get(column) == entry else []
        if begun and given.thresholds[column] not in [*begun, *now]:
            lines.append(f"  thresholds.{column}: was {(now or begun)[0]!r}, now {given.thresholds[column]!r}")
            wanted += ["--threshold", f"{column}={given.thresholds[column]}"]
    if lines:
        raise UserError(
            f"{job.storage.uri} was begun with other settings:\n" + "\n".join(lines) + "\nGive the same thresholds. To "
            f"change those of finished columns: {phf('retag', job.storage.uri, *wanted)}"
        )


def _layer(job: StoredJob, record: LayerRecord) -> int:
    """The number of the layer that an earlier run with the same scorers began, or the next one."""
    for number, layer in enumerate(job.layers, start=2):
        if layer == record:
            return number
    return len(job.layers) + 2
