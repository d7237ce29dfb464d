"""Save checkpoints: every rank writes its files, then rank 0 commits them, while the loop waits or in the background.

In the background (`training.save_async`), the loop stops only while the state is copied to host memory. A thread of
each rank then writes, flushes and hashes that rank's files. At the end of each step the ranks learn whether all threads
are done, in the message that they exchange anyway; then a thread of rank 0 commits. Both ways commit the same
checkpoints. (DeepSpeed 0.19's own `checkpoint.writer` with `decoupled` waits for its files before the next update.)
"""

import errno
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from scorers.amounts import format_size
from scorers.errors import IncompleteError
from training.config import TrainingConfig
from training.distributed.world import World
from training.engine.engine import Engine
from training.loop.snapshot import Snapshot
from training.runs import checkpoints
from training.runs.best import best_steps


class Saving:
    """Saves the checkpoints of a run, one at a time. All methods but `under_way` and `close` are called on every rank.

    Args:
        engine: the engine whose state is saved.
        config: the training settings, for which checkpoints to keep.
        world: the ranks.
        folder: the folder of the checkpoints.
        committed: called after each commit.

    Attributes:
        saved: step of the newest committed checkpoint; None without one.
        pending: step of the checkpoint that is being written; None when none is.
    """

    def __init__(
        self, engine: Engine, config: TrainingConfig, world: World, folder: Path, committed: Callable[[], None]
    ) -> None:
        self.saved: int | None = None
        self.pending: int | None = None
        self._engine = engine
        self._config = config
        self._world = world
        self._folder = folder
        # Keep the checkpoint from which a longer run would continue.
        self._same_until = engine.horizon.same_until or 0
        self._committed = committed
        self._snapshot = Snapshot()
        self._thread: ThreadPoolExecutor | None = None
        self._abandoned = threading.Event()
        self._job: Future[list[checkpoints.CheckpointFile]] | None = None
        self._seconds = 0.0
        self._keep_others = False
        self._committing = False
        self._stalled = self._waited = 0.0

    def save(self, step: int, seconds: float, *, background: bool, keep_others: bool = False) -> None:
        """Start to save the current state, after waiting for the previous checkpoint.

        Args:
            step: optimiser steps done.
            seconds: as in `training.runs.checkpoints.Marker`.
            background: return once the state is copied; `advance` or `wait` commits it later.
            keep_others: remove no older checkpoint after this one.

        Raises:
            IncompleteError: this checkpoint or the one before could not be written; earlier ones are untouched.
        """
        began = time.perf_counter()
        self.wait()
        self._waited += time.perf_counter() - began
        self._world.on_main(self._stage(step))
        staging = checkpoints.staging_path(self._folder, step)
        states: list[tuple[Path, Any]] = []
        files: list[Path] = []
        error: Exception | None = None
        try:
            if background:
                self._snapshot.begin()
                files = self._engine.save(staging, lambda state, path: states.append((path, self._copy(state))))
            else:
                files = self._engine.save(staging)
        except (OSError, RuntimeError) as failure:
            error = failure
        if self._world.any(error is not None)[0]:
            raise self._unsaved(error)
        self.pending, self._seconds, self._keep_others = step, seconds, keep_others
        self._start(lambda: self._write(staging, files, states))
        if not background:
            self.wait()
        self._stalled += time.perf_counter() - began

    @property
    def under_way(self) -> tuple[bool, bool]:
        """Whether this rank's thread is busy, and whether it failed; `advance` takes both, combined over all ranks."""
        if self._job is None or not self._job.done():
            return self._job is not None, False
        return False, self._job.exception() is not None

    def advance(self, busy: bool, failed: bool) -> None:
        """Take the pending checkpoint one stage further if no rank is busy: from written to committed, then to saved.

        Args:
            busy: whether the thread of any rank is busy.
            failed: whether the thread of any rank failed.

        Raises:
            IncompleteError: the checkpoint could not be written; earlier ones are untouched.
        """
        if failed:
            raise self._unsaved(self._job.exception() if self._job is not None and self._job.done() else None)
        if self._job is None or busy:
            return
        if not self._committing:
            described = [file for files in self._world.gather(self._job.result()) for file in files]
            self._committing = True
            self._start(lambda: self._commit(described))
            return
        self.saved, self.pending, self._committing, self._job = self.pending, None, False, None
        self._committed()

    def wait(self) -> None:
        """Wait until the pending checkpoint, if any, is committed.

        Raises:
            IncompleteError: as for `advance`.
        """
        while self._job is not None:
            wait([self._job])
            self.advance(*self._world.any(*self.under_way))

    def read(self) -> dict[str, float]:
        """Seconds for which saving stopped the loop since the last call, `waited` of them for the previous checkpoint.

        Empty where no checkpoint was started.
        """
        stalled, waited = self._stalled, self._waited
        self._stalled = self._waited = 0.0
        return {"stalled": stalled, "waited": waited} if stalled else {}

    def close(self) -> None:
        """End the thread. An unfinished checkpoint stays in its staging folder, which the next save clears."""
        self._abandoned.set()
        if self._thread is not None:
            self._thread.shutdown()

    def _start(self, work: Callable[[], list[checkpoints.CheckpointFile]]) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._job = self._thread.submit(work)

    def _stage(self, step: int) -> Callable[[], None]:
        def stage() -> None:
            try:
                checkpoints.stage(self._folder, step)
            except OSError as error:
                raise self._unsaved(error) from error

        return stage

    def _copy(self, state: Any) -> Any:
        try:
            return self._snapshot.copy(state)
        except (OSError, RuntimeError) as error:
            if "memory" not in str(error):
                raise
            reason = "there is no host memory for a copy of the state, which training.save_async needs"
            raise OSError(errno.ENOMEM, reason) from error

    def _write(
        self, staging: Path, files: list[Path], states: list[tuple[Path, Any]]
    ) -> list[checkpoints.CheckpointFile]:
        for path, state in states:
            if self._abandoned.is_set():
                return []
            torch.save(state, path)
        return [] if self._abandoned.is_set() else checkpoints.describe(staging, files)

    def _commit(self, described: list[checkpoints.CheckpointFile]) -> list[checkpoints.CheckpointFile]:
        step, config = self.pending, self._config
        if self._world.is_main and step is not None:
            checkpoints.commit(self._folder, step, ranks=self._world.size, seconds=self._seconds, described=described)
            checkpoints.set_aside(self._folder, self.saved or 0, step)
            if self._keep_others:
                return []
            best = best_steps(self._folder, config.best_metric, config.best_mode)[: config.keep_best]
            # The newest checkpoint up to that step: none was saved at the step itself if its update was skipped.
            longer = [each for each in checkpoints.steps(self._folder) if each <= self._same_until][-1:]
            checkpoints.rotate(self._folder, config.keep_checkpoints, config.keep_every, {*best, *longer})
        return []

    def _unsaved(self, error: BaseException | None) -> BaseException:
        if error is not None and not isinstance(error, OSError | RuntimeError):
            return error
        reason = "another rank failed" if error is None else getattr(error, "strerror", None) or type(error).__name__
        free = ""
        if self._folder.exists():
            free = f" ({format_size(shutil.disk_usage(self._folder).free)} are free there)"
        failure = IncompleteError(
            f"a checkpoint could not be written to {self._folder}: {reason}{free}. Earlier checkpoints are untouched; "
            "make room and run the same command again."
        )
        failure.__cause__ = error
        return failure
