"""Run a job once its epoch is claimed: label the missing units, then seal the dataset."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.corpus.plan import Unit
from pipeline.dataset.manifest import Manifest
from pipeline.job.epoch import Epoch
from pipeline.job.record import StoredJob
from pipeline.job.run_status import RunStatus, State
from pipeline.job.staging import clear_staging
from pipeline.job.unit_records import UnitRecord
from pipeline.job.unit_store import UnitStore
from pipeline.labelling.commit import Commits, Committer
from pipeline.labelling.local_backend import LocalBackend
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.monitoring.logs import RunLog
from pipeline.labelling.monitoring.metrics import Metrics
from pipeline.labelling.monitoring.progress import Activity, Progress
from pipeline.labelling.monitoring.status_file import StatusFile, status_of
from pipeline.labelling.on_ray.cluster import ray_cluster
from pipeline.labelling.resolve import ResolvedJob
from pipeline.labelling.scheduler.autoscaling import Pool, local_ray_cpus, missing_resources, pools_of, without_ray
from pipeline.labelling.scheduler.backend import Backend
from pipeline.labelling.scheduler.events import Observer, Tick, UnitCommitted, combine_observers
from pipeline.labelling.scheduler.scheduler import Failure, Scheduler
from pipeline.labelling.workers.worker import PartResult
from pipeline.sealing.current import seal_current
from pipeline.storage.local import LocalStorage
from scorers.amounts import format_count
from scorers.errors import IncompleteError, StoppedError, UserError
from scorers.stopping import asking, is_stop

# Seconds that the current units may take to finish after a request to stop.
GRACE_S = 10.0

NOTHING_LOST = "Nothing is lost: the same command continues."

# Seconds between checks for a newer driver, and between updates of the figures for `phf status`.
_CHECK_INTERVAL_S = 5.0
_FIGURES_INTERVAL_S = 1.0

# Concurrent commits: on a disk, which syncs, and in an object store, where each takes several round trips.
_COMMITS_ON_DISK, _COMMITS_IN_STORE = 2, 8


class Timer:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.monotonic()

    def lap(self, phase: str) -> None:
        """End a phase, which began at the last lap."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._mark
        self._mark = now


@dataclass(frozen=True)
class RunContext:
    """What a run reports to: the progress display, the log and the timer."""

    reporter: Reporter
    log: RunLog = field(default_factory=lambda: RunLog(None))
    timer: Timer = field(default_factory=Timer)


class Run:
    """Labels the missing units of a stored job, and seals it.

    Attributes:
        progress: what this run has done.
    """

    def __init__(self, job: StoredJob, epoch: Epoch, context: RunContext) -> None:
        self._stored = job
        self._plan = job.plan
        self._epoch = epoch
        self._reporter = context.reporter
        self._log = context.log
        self._timer = context.timer
        self._status_file = StatusFile(epoch)
        self.progress = Progress(units=len(self._plan.units), before=0, workers=0)
        self._observe: Observer = context.log
        self._check_due = self._figures_due = 0.0
        self._stop_announced = False

    def finish(self, layers: Sequence[int], *, label: Sequence[ResolvedJob]) -> Manifest:
        """Label the missing units of the layers in `label`, then seal a dataset with the columns of `layers`.

        Raises:
            UserError: a worker cannot start, or an input has changed.
            IncompleteError: some units could not be labelled; the others are committed.
            StoppedError: stopped by a signal or a newer driver.
            OSError: the storage fails.
        """
        with self._published_status():
            for job in label:
                self._label(job, Committer(self._epoch, UnitStore(self._epoch.storage, job.layer)))
            self._show_status("sealing")
            manifest = seal_current(
                self._epoch,
                self._stored,
                layers,
                lambda what, done, total: self._reporter.measure(what.capitalize(), done, total),
            )
            self._log.sealed(manifest)
        clear_staging(self._epoch)
        self._timer.lap("seal")
        return manifest

    def relabel(self, job: ResolvedJob, committer: Committer) -> None:
        """Label again the units that `committer` finds missing. Seals nothing.

        Raises:
            UserError, IncompleteError, StoppedError, OSError: see `finish`.
        """
        with self._published_status():
            self._label(job, committer)

    @contextlib.contextmanager
    def _published_status(self) -> Iterator[None]:
        """Publish the run's status for `phf status` until the run ends, also if it fails."""
        with self._status_file:
            self._log.claimed(self._epoch.number)
            try:
                self._show_status("starting")
                yield
            except BaseException as error:
                if is_stop(error):
                    self._show_status("stopped")
                elif isinstance(error, OSError):
                    self._show_status("incomplete")
                    # If the output is no longer mounted, report that instead of a missing file.
                    with contextlib.suppress(OSError):
                        self._epoch.check()
                elif isinstance(error, UserError):
                    self._show_status("incomplete")
                    # The failure may be due to a newer driver that has finished and cleaned up; report that instead.
                    with contextlib.suppress(IncompleteError, OSError):
                        self._epoch.check()
                raise
            self._show_status("done")

    def _label(self, job: ResolvedJob, committer: Committer) -> None:
        self._job = job
        self._committer = committer
        committed = committer.recover(len(self._plan.units), list(job.groups))
        before = int(committed.sum())
        count = len(committed) - before
        activity = Activity(list(job.groups), count)
        self.progress = Progress(units=len(committed), before=before, workers=0, activity=activity)
        self._log.progress = self.progress
        self._log.planned(len(committed), before, len(self._plan.sources))
        if before and count:
            self._reporter.note(f"{before:,} of {len(committed):,} units are already labelled; resuming.")
        if count:
            missing = (self._plan.units[index] for index in np.flatnonzero(~committed).tolist())
            if without_ray(self._job.config.execution, count):
                self._on_this_machine(missing, count)
            else:
                self._on_ray(missing, count)

    def _on_ray(self, missing: Iterable[Unit], count: int) -> None:
        execution = self._job.config.execution
        pools = pools_of(execution, list(self._job.groups), count)
        self._reporter.step(
            f"Joining the Ray cluster {execution.address}"
            if execution.address
            else "Starting Ray, which takes some seconds"
        )
        with ray_cluster(execution.address, local_ray_cpus(execution, pools), execution.metrics_port) as available:
            self._timer.lap("start")
            self._log.ray_started(execution.address, available, self._timer.seconds["start"])
            if execution.address is None:
                _refuse_unavailable(pools, available)
            self._schedule(missing, count, pools, self._ray_backend)
            self._timer.lap("label")

    def _ray_backend(self, pools: Mapping[str, Pool]) -> Backend:
        # Imports Ray, which reads its environment on import, so only after `ray_cluster` has set it.
        from pipeline.labelling.on_ray.actors import RayBackend

        return RayBackend(self._job, self._epoch.staging, pools)

    def _on_this_machine(self, missing: Iterable[Unit], count: int) -> None:
        self._timer.lap("start")
        pools = {group: Pool.of(1) for group in self._job.groups}
        self._schedule(missing, count, pools, lambda _: LocalBackend(self._job, self._epoch.staging))
        self._timer.lap("label")

    def _schedule(
        self,
        missing: Iterable[Unit],
        count: int,
        pools: Mapping[str, Pool],
        start: Callable[[Mapping[str, Pool]], Backend],
    ) -> None:
        execution = self._job.config.execution
        observers: list[Observer] = [self.progress.activity, self._log]
        if execution.address or execution.metrics_port:
            observers.append(Metrics(self._epoch.storage.uri, self._log.run, self.progress, len(self._plan.cut)))
        self._observe = combine_observers(*observers)
        self.progress.restart()
        self._reporter.step(f"Labelling {format_count(count, 'unit')} with {_describe_pools(pools)}")
        threads = _COMMITS_ON_DISK if isinstance(self._epoch.storage, LocalStorage) else _COMMITS_IN_STORE
        with Commits(self._committer.commit, self._count, threads) as commits:
            scheduler = Scheduler(
                start(pools),
                pools,
                commits,
                notify=self._reporter.note,
                attempts=execution.attempts,
                unit_deadline_s=execution.unit_deadline_s,
                observer=self._observe,
            )
            try:
                with asking(lambda _: scheduler.stop(GRACE_S)):
                    scheduler.run(missing, lambda: self._tick(scheduler, commits))
                    commits.drain()
            finally:
                self._observe(Tick())
        if scheduler.stopping:
            raise StoppedError(
                f"{self.progress.committed:,} of {format_count(self.progress.units, 'unit')} are committed. Nothing is "
                "lost: the same command continues."
            )
        if scheduler.failures:
            raise _incomplete(scheduler.failures, self.progress)

    def _count(self, unit: Unit, parts: Sequence[PartResult], record: UnitRecord) -> None:
        self.progress.add(record, parts)
        self._observe(UnitCommitted(unit, record, parts))

    def _tick(self, scheduler: Scheduler, commits: Commits[UnitRecord]) -> None:
        commits.collect()
        if scheduler.stopping and not self._stop_announced:
            self._stop_announced = True
            self._log.stopping(GRACE_S)
            self._reporter.note(
                f"Stopping: the units being worked on have {GRACE_S:g} s to finish. Interrupt again to abandon them."
            )
        self.progress.workers = scheduler.workers
        self._reporter.update(self.progress)
        now = self.progress.clock()
        if now >= self._figures_due:
            self._figures_due = now + _FIGURES_INTERVAL_S
            self._status_file.show(self._status("labelling"))
            self._observe(Tick())
        if now >= self._check_due:
            self._check_due = now + _CHECK_INTERVAL_S
            # Notice a newer driver even while no unit is committed.
            self._epoch.check()

    def _show_status(self, state: State) -> None:
        self._status_file.show(self._status(state), at_once=True)

    def _status(self, state: State) -> RunStatus:
        return status_of(self._epoch, self._log.run, state, self.progress)


def _refuse_unavailable(pools: Mapping[str, Pool], available: Mapping[str, float]) -> None:
    """Refuse pools that a local Ray can never satisfy; they would wait forever."""
    for group, missing in missing_resources(pools, available).items():
        raise UserError(
            f"execution.pools.{group} needs {missing}, at least {pools[group].minimum}; more than this machine has. "
            "Reserve less, or give the --address of a cluster that has it."
        )


def _describe_pools(pools: Mapping[str, Pool]) -> str:
    minimum = sum(pool.minimum for pool in pools.values())
    if all(pool.minimum == pool.maximum for pool in pools.values()):
        return format_count(minimum, "worker")
    return f"{format_count(minimum, 'worker')} or more"


def _incomplete(failures: Sequence[Failure], progress: Progress) -> IncompleteError:
    shown = "\n".join(f"  unit {each.unit.name}: {each.error}, {each.attempts} times" for each in failures[:10])
    more = f"\n  … and {len(failures) - 10:,} more" if len(failures) > 10 else ""
    return IncompleteError(
        f"{format_count(len(failures), 'unit')} could not be labelled:\n{shown}{more}\n"
        f"The other {progress.committed:,} are committed. The same command tries again; the dataset is sealed once all "
        "units are committed."
    )
