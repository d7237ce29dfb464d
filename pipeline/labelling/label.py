"""Run a labelling job from its configuration to a sealed dataset. This process is the driver, which alone commits."""

from dataclasses import dataclass

from pipeline.config import LabelConfig
from pipeline.dataset.manifest import Manifest
from pipeline.job.epoch import Epoch
from pipeline.job.record import load_job
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.monitoring.logs import RunLog
from pipeline.labelling.monitoring.progress import Progress
from pipeline.labelling.on_ray.cluster import check_metrics_port
from pipeline.labelling.prepare import prepare, write_job
from pipeline.labelling.resolve import check_layer, resolve_layer
from pipeline.labelling.run import NOTHING_LOST, Run, RunContext
from pipeline.sealing.extent import SCORE, UnfinishedStep, extent_of, unfinished
from pipeline.sealing.generations import sealed_manifest
from pipeline.storage.failures import storage_failures
from pipeline.storage.open import open_storage
from scorers.stopping import stoppable


@dataclass(frozen=True)
class Summary:
    """The result of a run of `phf label` or `phf score`.

    Attributes:
        output: URI of the dataset.
        manifest: the sealed manifest.
        progress: what this run did; None if there was nothing left to do.
        elapsed_s: seconds of this run, by phase: `prepare`, `start` (Ray), `label` and `seal`.
        added: columns that `phf score` added; empty for `phf label`.
        unfinished: other steps that were begun on the dataset and are not finished.
    """

    output: str
    manifest: Manifest
    progress: Progress | None
    elapsed_s: dict[str, float]
    added: tuple[str, ...] = ()
    unfinished: tuple[UnfinishedStep, ...] = ()

    @property
    def quarantined(self) -> int:
        """Quarantine entries: records, and sources that could not be read to the end."""
        ledger = self.manifest.ledger
        return sum(ledger.quarantined.values()) + ledger.sources_cut


def run_label(config: LabelConfig, reporter: Reporter, log: RunLog | None = None, *, extend: bool = False) -> Summary:
    """Label, commit and seal; resume where an earlier run of the same job stopped. Call it in the main thread.

    Args:
        config: configuration of the job.
        reporter: shows the progress to the user.
        log: structured log; None for none.
        extend: also label inputs that were added since the job was begun.

    Raises:
        UserError: refused before anything is written: invalid inputs, settings or scorers, or an output that holds
            something else or a job with other settings.
        IncompleteError: some units could not be labelled, or a disk or store failed; the other units are committed.
        StoppedError: stopped by a signal or a newer driver; committed units are kept.
    """
    storage = open_storage(config.output)
    config = config.model_copy(update={"output": storage.uri})
    if config.execution.metrics_port is not None:
        check_metrics_port(config.execution.metrics_port, config.execution.address)
    with stoppable(NOTHING_LOST):
        context = RunContext(reporter, log or RunLog(None))
        prepared = prepare(storage, config, reporter, extend=extend)
        context.timer.lap("prepare")
        fingerprints = {column: each.fingerprint for column, each in prepared.record.scorers.items()}
        context.log.resolved(prepared.config, fingerprints)
        with storage_failures(storage):
            manifest = sealed_manifest(storage)
            if manifest is not None and prepared.added is None:
                left = extent_of(load_job(storage)).unfinished
                if all(step.command == SCORE for step in left):
                    return Summary(storage.uri, manifest, None, context.timer.seconds, unfinished=left)
            job = write_job(storage, prepared)
            layers, execution = extent_of(job).sealed, prepared.config.execution
            for layer in layers[1:]:
                check_layer(job, layer, execution)
            resolved = [resolve_layer(job, layer, execution) for layer in layers]
            run = Run(job, Epoch.claim(storage), context)
            manifest = run.finish(layers, label=resolved)
            return Summary(storage.uri, manifest, run.progress, context.timer.seconds, unfinished=unfinished(storage))
