"""Publish the figures of a running job in a file, which `phf status` reads in other processes."""

import contextlib
import os
import threading
from datetime import UTC, datetime
from types import TracebackType

from pipeline.job.epoch import Epoch
from pipeline.job.run_status import PROGRESS, RunStatus, State
from pipeline.labelling.monitoring.progress import Progress

# Seconds between two versions of the file.
_INTERVAL_S = 5.0

# Most names of given-up units in the file; all are counted.
_NAMES = 100


def status_of(epoch: Epoch, run: str, state: State, progress: Progress) -> RunStatus:
    """The current figures of a run."""
    activity = progress.activity
    return RunStatus(
        state=state,
        run=run,
        epoch=epoch.number,
        host=os.uname().nodename,
        pid=os.getpid(),
        written=datetime.now(UTC),
        units=progress.units,
        committed=progress.committed,
        committed_before=progress.before,
        open_units=activity.open_units,
        workers=activity.workers(),
        backlog=activity.backlog(),
        records=progress.records,
        sentences=progress.sentences,
        quarantined=dict(progress.quarantined),
        elapsed_s=progress.elapsed_s,
        records_per_s=progress.records_per_s,
        remaining_s=progress.remaining_s,
        seconds=dict(progress.seconds),
        given_up=len(progress.failed),
        failed=list(progress.failed[:_NAMES]),
        failed_attempts=dict(activity.failed_attempts),
        failures=list(activity.failures),
    )


class StatusFile:
    """Writes `job/progress.json` from a thread while its context is active, however busy the main thread is.

    The thread writes every `every_s` seconds until a newer driver has claimed the output. Storage errors are ignored
    and the write is tried again; the main thread decides whether they end the job.
    """

    def __init__(self, epoch: Epoch, every_s: float = _INTERVAL_S) -> None:
        self._epoch = epoch
        self._every_s = every_s
        self._status: RunStatus | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="status")

    def show(self, status: RunStatus, *, at_once: bool = False) -> None:
        """Set the figures to write: at the next write, or `at_once`."""
        self._status = status
        if at_once:
            self._write()

    def __enter__(self) -> "StatusFile":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self._every_s)  # a storage that hangs must not block the exit

    def _keep(self) -> None:
        while not self._ended.wait(self._every_s):
            self._write()

    def _write(self) -> None:
        # Ignore all storage errors: the job does not depend on these figures.
        with self._lock, contextlib.suppress(Exception):
            if self._status is not None:
                self._epoch.check()
                now = self._status.model_copy(update={"written": datetime.now(UTC)})
                self._epoch.storage.put(PROGRESS, now.model_dump_json(indent=2).encode())
