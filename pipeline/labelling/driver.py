"""A labelling job from its configuration to a sealed dataset; the one process that commits."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import LabelConfig, LabelExecution
from pipeline.corpus.plan import Unit
from pipeline.dataset.manifest import Manifest
from pipeline.labelling.cluster import ray_cluster
from pipeline.labelling.commit import Committer
from pipeline.labelling.committing import Commits
from pipeline.labelling.job import StoredJob, load_job
from pipeline.labelling.pools import Pool, cpus_of_own_ray, missing_resources, pools_of
from pipeline.labelling.preparation import check_layer, prepare, resolve_layer, write_job
from pipeline.labelling.progress import Progress, State, write_status
from pipeline.labelling.reporter import Reporter, count_of
from pipeline.labelling.scheduler import Failure, Scheduler
from pipeline.labelling.stopping import StopRequest, StopSignals
from pipeline.labelling.worker import Job, PartResult
from pipeline.sealing.current import holds_all, seal_current
from pipeline.sealing.generations import sealed_manifest
from pipeline.storage import LocalStorage, Storage
from pipeline.units.epoch import STAGING, Epoch
from pipeline.units.records import UnitRecord
from pipeline.units.store import UnitStore
from scorers.errors import IncompleteError, StoppedError, UserError

# After a request to stop: seconds in which the units being worked on may still be finished.
GRACE_S = 10.0
_STATUS_EVERY_S = 5.0
# Commits under way at once: on a disk that syncs, and in a store that takes several round trips for each.
_COMMITS_ON_DISK, _COMMITS_IN_STORE = 2, 8


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

    def _label(self, layer: int) -> None:
        resolved = resolve_layer(self._stored, layer, self._execution)
        storage = self._epoch.storage
        self._scorers = self._stored.columns([layer])
        self._job = Job(resolved.config, self._plan, resolved.specs, resolved.groups, storage.uri, layer=layer)
        self._committer = Committer(self._epoch, UnitStore(storage, layer))
        committed = self._committer.recover(len(self._plan.units), list(self._job.groups))
        before = int(committed.sum())
        count = len(committed) - before
        self._progress = Progress(units=len(self._plan.units), before=before, workers=0)
        if before and count:
            self._reporter.note(f"{before:,} of {len(self._plan.units):,} units are labelled already; going on.")
        if not count:
            return
        execution = self._job.config.execution
        pools = pools_of(execution, list(self._job.groups), count)
        self._reporter.step(
            f"Joining the Ray cluster {execution.address}"
            if execution.address
            else "Starting Ray, which takes some seconds"
        )
        with ray_cluster(execution.address, cpus_of_own_ray(execution, pools)) as available:
            self._signals.reinstall()
            self._timer.lap("start")
            if execution.address is None:
                _refuse_impossible(pools, available)
            missing = (self._plan.units[index] for index in np.flatnonzero(~committed).tolist())
            self._schedule(missing, count, pools)
            self._timer.lap("label")

    def _schedule(self, missing: Iterable[Unit], count: int, pools: Mapping[str, Pool]) -> None:
        # It imports Ray, which reads its environment when it is imported: not before `ray_cluster` has set that.
        from pipeline.labelling.actors import RayCrew

        execution = self._job.config.execution
        fingerprints = {column: entry.fingerprint for column, entry in self._scorers.items()}
        self._progress.restart()
        self._reporter.step(f"Labelling {count_of(count, 'unit')} with {_shown(pools)}")
        threads = _COMMITS_ON_DISK if isinstance(self._epoch.storage, LocalStorage) else _COMMITS_IN_STORE
        with Commits(self._committer.commit, self._count, threads) as commits:
            scheduler = Scheduler(
                RayCrew(self._job, fingerprints, self._epoch.staging, pools),
                pools,
                commits,
                notify=self._reporter.note,
                attempts=execution.attempts,
                unit_deadline_s=execution.unit_deadline_s,
            )
            self._signals.on_request = lambda: scheduler.stop(GRACE_S)
            try:
                scheduler.run(missing, lambda: self._tick(scheduler, commits))
                commits.drain()
            finally:
                self._signals.on_request = None
        if scheduler.stopping:
            raise StoppedError(
                f"{self._progress.committed:,} of {count_of(self._progress.units, 'unit')} are committed. Nothing is "
                "lost: the same command goes on."
            )
        if scheduler.failures:
            raise _incomplete(scheduler.failures, self._progress)

    def _count(self, unit: Unit, parts: Sequence[PartResult], record: UnitRecord) -> None:
        self._progress.add(record, parts)

    def _tick(self, scheduler: Scheduler, commits: Commits[UnitRecord]) -> None:
        commits.collect()
        if scheduler.stopping and not self._told_stopping:
            self._told_stopping = True
            self._reporter.note(
                f"Stopping: the units being worked on have {GRACE_S:g} s to finish. Interrupt again to abandon them."
            )
        self._progress.workers, self._progress.working = scheduler.workers, scheduler.working
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


def _refuse_impossible(pools: Mapping[str, Pool], available: Mapping[str, float]) -> None:
    """A Ray of our own never gets more machines: refuse at once what would wait for ever."""
    for group, missing in missing_resources(pools, available).items():
        raise UserError(
            f"execution.pools.{group} asks for {missing}, {pools[group].least} at least; more than Ray has here. Ask "
            "for less, or give the --address of a cluster that has it."
        )


def _shown(pools: Mapping[str, Pool]) -> str:
    least = sum(pool.least for pool in pools.values())
    if all(pool.least == pool.most for pool in pools.values()):
        return count_of(least, "worker")
    return f"{count_of(least, 'worker')} or more"


def _incomplete(failures: Sequence[Failure], progress: Progress) -> IncompleteError:
    shown = "\n".join(f"  unit {each.unit.name}: {each.error}, {each.attempts} times" for each in failures[:10])
    more = f"\n  … and {len(failures) - 10:,} more" if len(failures) > 10 else ""
    return IncompleteError(
        f"{count_of(len(failures), 'unit')} could not be labelled:\n{shown}{more}\n"
        f"The other {progress.committed:,} are committed. The same command tries again; the dataset is sealed once all "
        "units are in."
    )
