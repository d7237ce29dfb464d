"""A labelling job from its configuration to a sealed dataset; the one process that commits."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import LabelConfig, LabelExecution
from pipeline.corpus.plan import Unit
from pipeline.dataset.manifest import Manifest
from pipeline.labelling.cluster import ray_cluster
from pipeline.labelling.commit import Committer
from pipeline.labelling.job import StoredJob, load_job
from pipeline.labelling.preparation import check_layer, prepare, resolve_layer, write_job
from pipeline.labelling.progress import Progress, State, write_status
from pipeline.labelling.reporter import Reporter, count_of
from pipeline.labelling.scheduler import Failure, Scheduler
from pipeline.labelling.stopping import StopRequest, StopSignals
from pipeline.labelling.worker import BASE_GROUP, Job, PartResult
from pipeline.sealing.current import holds_all, seal_current
from pipeline.sealing.generations import sealed_manifest
from pipeline.storage import Storage
from pipeline.units.epoch import STAGING, Epoch
from pipeline.units.store import UnitStore
from scorers.errors import IncompleteError, StoppedError, UserError

# After a request to stop: seconds in which the units being worked on may still be finished.
GRACE_S = 10.0
_STATUS_EVERY_S = 5.0


@dataclass(frozen=True)
class Summary:
    """What a run of `phf label` has come to.

    Attributes:
        output: where the dataset is.
        manifest: what it holds.
        progress: what this run did; None if everything had been done before.
        elapsed_s: seconds of this run, by phase: `prepare`, `start` (Ray), `label` and `seal`.
    """

    output: str
    manifest: Manifest
    progress: Progress | None
    elapsed_s: dict[str, float]

    @property
    def quarantined(self) -> int:
        """Entries of quarantine: records, and sources whose rest could not be read."""
        ledger = self.manifest.ledger
        return sum(ledger.quarantined.values()) + ledger.sources_cut


def run_label(config: LabelConfig, reporter: Reporter, *, extend: bool = False) -> Summary:
    """Label, commit and seal; goes on where an earlier run of the same job stopped. Call it in the main thread.

    Args:
        config: the job.
        reporter: is told what is going on.
        extend: also label inputs that have come since the job was begun.

    Raises:
        UserError: refused before anything is written: bad inputs, settings or scorers, or an output that holds
            something else or a job with other settings.
        IncompleteError: some units could not be labelled, or a disk or store failed; the other units are committed.
        StoppedError: stopped by a signal or a newer driver; what is committed stays.
    """
    storage = Storage.open(config.output)
    config = config.model_copy(update={"output": storage.uri})
    with StopSignals() as signals:
        timer = Timer()
        prepared = prepare(storage, config, reporter, extend=extend)
        timer.lap("prepare")
        with storage_failures(storage):
            manifest = sealed_manifest(storage)
            if manifest is not None and prepared.added is None and _all_labelled(load_job(storage), manifest):
                return Summary(storage.uri, manifest, None, timer.seconds)
            job = write_job(storage, prepared)
            layers = [1] if manifest is None else job.layers_of(manifest.scorers)
            for layer in layers[1:]:
                check_layer(job, layer)
            run = Run(job, config.execution, Epoch.claim(storage), reporter, signals, timer)
            return run.finish(layers, label=layers)


def _all_labelled(job: StoredJob, manifest: Manifest) -> bool:
    """Whether nothing is left to do on a sealed dataset; not so where it was changed or a unit is gone."""
    layers = job.layers_of(manifest.scorers)
    units = len(job.plan.units)
    return holds_all(manifest, job, layers) and all(
        bool(UnitStore(job.storage, layer).committed(units).all()) for layer in layers
    )


class Run:
    """From the claimed epoch to the sealed dataset.

    Args:
        job: as it is stored.
        execution: how to run it.
        epoch: this driver's claim to the output.
        reporter: is told what is going on.
        signals: that may ask it to stop.
        timer: of the whole command.
    """

    def __init__(
        self,
        job: StoredJob,
        execution: LabelExecution,
        epoch: Epoch,
        reporter: Reporter,
        signals: StopSignals,
        timer: "Timer",
    ) -> None:
        self._stored = job
        self._plan = job.plan
        self._execution = execution
        self._epoch = epoch
        self._reporter = reporter
        self._signals = signals
        self._timer = timer
        self._progress = Progress(units=len(self._plan.units), before=0, workers=0)
        self._status_due = 0.0
        self._told_stopping = False

    def finish(self, layers: Sequence[int], *, label: Sequence[int]) -> Summary:
        """Label what is missing in some layers, then seal a dataset with the columns of `layers`."""
        try:
            for layer in label:
                self._label(layer)
            manifest = seal_current(
                self._epoch,
                self._stored,
                layers,
                lambda what, done, total: self._reporter.measure(what.capitalize(), done, total),
            )
        except (StoppedError, StopRequest):
            self._last_status("stopped")
            raise
        except (UserError, OSError):
            self._last_status("incomplete")
            raise
        self._last_status("done")
        self._epoch.storage.delete_folder(STAGING)
        self._timer.lap("seal")
        return Summary(self._epoch.storage.uri, manifest, self._progress, self._timer.seconds)

    def relabel(self, layer: int, committer: Committer, groups: Mapping[str, list[str]]) -> None:
        """Label again, by the columns of some groups, the units that `committer` finds missing; seal nothing."""
        try:
            self._label(layer, committer, groups)
        except (StoppedError, StopRequest):
            self._last_status("stopped")
            raise
        except (UserError, OSError):
            self._last_status("incomplete")
            raise
        self._last_status("done")

    def _label(
        self, layer: int, committer: Committer | None = None, groups: Mapping[str, list[str]] | None = None
    ) -> None:
        resolved = resolve_layer(self._stored, layer, self._execution)
        storage = self._epoch.storage
        self._scorers = self._stored.columns([layer])
        chosen = dict(groups or resolved.groups)
        self._job = Job(resolved.config, self._plan, resolved.specs, chosen, storage.uri, layer=layer)
        self._committer = committer or Committer(self._epoch, UnitStore(storage, layer))
        committed = self._committer.recover(len(self._plan.units), list(self._job.groups))
        missing = np.flatnonzero(~committed)
        before = int(committed.sum())
        self._progress = Progress(units=len(self._plan.units), before=before, workers=0)
        if before and len(missing):
            self._reporter.note(f"{before:,} of {len(self._plan.units):,} units are labelled already; going on.")
        if not len(missing):
            return
        execution = self._job.config.execution
        self._reporter.step(
            f"Joining the Ray cluster {execution.address}"
            if execution.address
            else "Starting Ray, which takes some seconds"
        )
        cpus = execution.workers and execution.workers * execution.threads
        with ray_cluster(execution.address, cpus) as available:
            self._signals.reinstall()
            self._timer.lap("start")
            self._schedule(missing, self._workers(len(missing), available))
            self._timer.lap("label")

    def _workers(self, units: int, available: Mapping[str, float]) -> dict[str, int]:
        """Workers by group; no more than there are units."""
        execution = self._job.config.execution
        if len(self._job.groups) > 1 and not available.get("GPU"):
            columns = ", ".join(execution.devices)
            raise UserError(f"execution.devices asks for a GPU ({columns}), but Ray has none here.")
        wanted = execution.workers or max(1, int(available.get("CPU", 1)) // execution.threads)
        return {
            group: min(units, wanted if group == BASE_GROUP else execution.gpu_workers) for group in self._job.groups
        }

    def _schedule(self, missing: NDArray[np.int64], workers: Mapping[str, int]) -> None:
        # It imports Ray, which reads its environment when it is imported: not before `ray_cluster` has set that.
        from pipeline.labelling.actors import RayCrew

        execution = self._job.config.execution
        resources: dict[str, dict[str, float]] = {
            group: {"num_cpus": execution.threads} if group == BASE_GROUP else {"num_cpus": 0, "num_gpus": 1}
            for group in workers
        }
        fingerprints = {column: entry.fingerprint for column, entry in self._scorers.items()}
        self._progress.workers = sum(workers.values())
        self._progress.restart()
        scheduler = Scheduler(
            RayCrew(self._job, fingerprints, self._epoch.staging, resources),
            workers,
            self._commit,
            notify=self._reporter.note,
            attempts=execution.attempts,
            unit_deadline_s=execution.unit_deadline_s,
        )
        self._reporter.step(
            f"Labelling {count_of(len(missing), 'unit')} with {count_of(self._progress.workers, 'worker')}"
        )
        self._signals.on_request = lambda: scheduler.stop(GRACE_S)
        try:
            scheduler.run((self._plan.units[index] for index in missing.tolist()), lambda: self._tick(scheduler))
        finally:
            self._signals.on_request = None
        if scheduler.stopping:
            raise StoppedError(
                f"{self._progress.committed:,} of {count_of(self._progress.units, 'unit')} are committed. Nothing is "
                "lost: the same command goes on."
            )
        if scheduler.failures:
            raise _incomplete(scheduler.failures, self._progress)

    def _commit(self, unit: Unit, parts: Sequence[PartResult]) -> None:
        self._progress.add(self._committer.commit(unit, parts), parts)

    def _tick(self, scheduler: Scheduler) -> None:
        if scheduler.stopping and not self._told_stopping:
            self._told_stopping = True
            self._reporter.note(
                f"Stopping: the units being worked on have {GRACE_S:g} s to finish. Interrupt again to abandon them."
            )
        self._progress.working = scheduler.working
        self._progress.failed = [failure.unit.name for failure in scheduler.failures]
        self._reporter.update(self._progress)
        if self._progress.clock() >= self._status_due:
            self._status_due = self._progress.clock() + _STATUS_EVERY_S
            # A driver that was overtaken while it waits learns it here, not only at its next commit.
            self._epoch.check()
            write_status(self._epoch.storage, self._epoch.number, "labelling", self._progress)

    def _last_status(self, state: State) -> None:
        with contextlib.suppress(OSError, StoppedError):
            self._epoch.check()
            write_status(self._epoch.storage, self._epoch.number, state, self._progress)


class Timer:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.monotonic()

    def lap(self, phase: str) -> None:
        """The phase that began with the last lap ends."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._mark
        self._mark = now


@contextlib.contextmanager
def storage_failures(storage: Storage) -> Iterator[None]:
    """Tell a failing disk or store to the user as what it is: the job is incomplete, and goes on later."""
    try:
        yield
    except OSError as error:
        raise IncompleteError(
            f"{storage.uri} failed: {error.strerror or error}. What is committed stays; the same command goes on once "
            "that is mended."
        ) from None


def _incomplete(failures: Sequence[Failure], progress: Progress) -> IncompleteError:
    shown = "\n".join(f"  unit {each.unit.name}: {each.error}, {each.attempts} times" for each in failures[:10])
    more = f"\n  … and {len(failures) - 10:,} more" if len(failures) > 10 else ""
    return IncompleteError(
        f"{count_of(len(failures), 'unit')} could not be labelled:\n{shown}{more}\n"
        f"The other {progress.committed:,} are committed. The same command tries again; the dataset is sealed once all "
        "units are in."
    )
