"""A labelling job from its configuration to a sealed dataset; the one process that commits."""

from dataclasses import dataclass

from pipeline.config import LabelConfig
from pipeline.dataset.manifest import Manifest
from pipeline.job.epoch import Epoch
from pipeline.job.record import load_job
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.monitoring.logs import RunLog
from pipeline.labelling.monitoring.progress import Progress
from pipeline.labelling.on_ray.cluster import check_metrics_port
from pipeline.labelling.prepare import check_layer, prepare, write_job
from pipeline.labelling.run import NOTHING_LOST, Run, RunContext
from pipeline.sealing.extent import SCORE, Begun, extent_of, unfinished
from pipeline.sealing.generations import sealed_manifest
from pipeline.storage.failures import storage_failures
from pipeline.storage.open import open_storage
from scorers.stopping import stoppable


@dataclass(frozen=True)
class Summary:
    """What a run of `phf label` or `phf score` has come to.

    Attributes:
        output: where the dataset is.
        manifest: what it holds.
        progress: what this run did; None if everything had been done before.
        elapsed_s: seconds of this run, by phase: `prepare`, `start` (Ray), `label` and `seal`.
        added: the columns that `phf score` has added; none by `phf label`.
        unfinished: what else was begun at the dataset and is not done.
    """

    output: str
    manifest: Manifest
    progress: Progress | None
    elapsed_s: dict[str, float]
    added: tuple[str, ...] = ()
    unfinished: tuple[Begun, ...] = ()

    @property
    def quarantined(self) -> int:
        """Entries of quarantine: records, and sources whose rest could not be read."""
        ledger = self.manifest.ledger
        return sum(ledger.quarantined.values()) + ledger.sources_cut


def run_label(config: LabelConfig, reporter: Reporter, log: RunLog | None = None, *, extend: bool = False) -> Summary:
    """Label, commit and seal; goes on where an earlier run of the same job stopped. Call it in the main thread.

    Args:
        config: of the job.
        reporter: told what happens, for people.
        log: told what happens, for machines.
        extend: also label inputs that have come since the job was begun.

    Raises:
        UserError: refused before anything is written: bad inputs, settings or scorers, or an output that holds
            something else or a job with other settings.
        IncompleteError: some units could not be labelled, or a disk or store failed; the other units are committed.
        StoppedError: stopped by a signal or a newer driver; what is committed stays.
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
        context.log.resolved(prepared.resolved.config, fingerprints)
        with storage_failures(storage):
            manifest = sealed_manifest(storage)
            if manifest is not None and prepared.added is None:
                left = extent_of(load_job(storage)).unfinished
                if all(step.command == SCORE for step in left):
                    return Summary(storage.uri, manifest, None, context.timer.seconds, unfinished=left)
            job = write_job(storage, prepared)
            layers = extent_of(job).sealed
            for layer in layers[1:]:
                check_layer(job, layer, config.execution)
            run = Run(job, config.execution, Epoch.claim(storage), context)
            manifest = run.finish(layers, label=layers)
            return Summary(storage.uri, manifest, run.progress, context.timer.seconds, unfinished=unfinished(storage))
