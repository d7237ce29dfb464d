"""The training loop: get the batch of a step, update the model, and call the callbacks."""

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scorers.errors import IncompleteError, StoppedError, UserError
from scorers.stopping import asking
from training.config import TrainingConfig
from training.data.batches import Batches
from training.data.prefetch import Prefetcher
from training.disk import write_atomically
from training.distributed.abandoning import Abandoned
from training.distributed.failures import failures_named
from training.distributed.watchdog import Watchdog
from training.distributed.world import World
from training.engine.engine import Engine, StepOutcome
from training.engine.timing import peak_flops, peak_memory
from training.loop.callbacks import Callback, Step
from training.loop.saving import Saving
from training.objectives import Objective
from training.runs import checkpoints
from training.schedule import Horizon, learning_rate

_NOTICE = (
    "Stopping after this step, which is saved; the same command continues from there. Interrupt again to leave at "
    "once, without saving it.\n"
)
# Seconds in which signals count as one; None for those of `scorers.stopping`.
_ASKED_ONCE_S: float | None = None


class DivergedError(IncompleteError):
    """The loss or the gradient is not finite, or too many updates in a row were skipped."""


@dataclass
class Trainer:
    """Trains an engine to its horizon, with the same calls on every rank.

    Attributes:
        objective: from the number of a step, counted from 0, to its loss.
        folder: the folder of the checkpoints.
        flops_per_token: floating-point operations per trained token.
        peak_flops: floating-point operations per second that one rank can do; see `training.engine.timing`. Measured
            again if steps exceed it, because then the machine was busy during the first measurement.
        callbacks: called in this order.
        phase_starts: first steps of later phases, whose losses must not be compared with earlier ones.
        ahead: batches to load while a step is computed; 0 where a batch depends on the weights.
        step: optimiser steps done.
        seconds: time spent in steps, including those of earlier processes of the run.
        skipped: updates skipped so far, including those of earlier processes of the run.
        broken: whether the last update was skipped because its loss or gradient was not finite; such a state is neither
            saved nor evaluated.
        evaluating: whether the model is being evaluated between two steps.
        stopping: whether the run stops after this step because a rank was asked to; the same on every rank.
    """

    engine: Engine
    objective: Callable[[int], Objective]
    batches: Batches
    horizon: Horizon
    config: TrainingConfig
    world: World
    folder: Path
    flops_per_token: float
    peak_flops: float
    callbacks: Sequence[Callback] = ()
    phase_starts: Collection[int] = ()
    ahead: int = 2
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    broken: bool = False
    evaluating: bool = False
    stopping: bool = False
    _skipped_in_a_row: int = field(default=0, repr=False)
    _skipping: bool = field(default=False, repr=False)
    _stop: bool = field(default=False, repr=False)
    _interruptible: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        stacks = self.folder.parent / "stacks"
        self._watchdog = Watchdog(stacks, self.world.rank, self.config.hang_timeout_s)
        self._saving = Saving(self.engine, self.config, self.world, self.folder, self._after_save)

    def resume(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Load a verified checkpoint.

        Raises:
            IncompleteError: another number of ranks wrote it, and there is no room to convert it.
            UserError: its weights or its optimiser state are not finite.
        """
        self.engine.load(checkpoint.path)
        if not self._is_finite():
            raise UserError(
                f"The checkpoint {checkpoint.path} holds weights that are not finite, so training cannot continue from "
                "it. Move it away, and the same command continues from the one before."
            )
        self.step = self._saving.saved = checkpoint.marker.step
        self.skipped = self.engine.skipped
        self.seconds = checkpoint.marker.seconds

    def begin_with(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Load a verified checkpoint of another run, without writing to that run.

        Raises:
            UserError: the checkpoint was removed while it was read.
            IncompleteError: as for `resume`.
        """
        self.world.on_main(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        try:
            self.engine.load(checkpoint.path, self.folder)
        except FileNotFoundError:
            raise UserError(
                f"{checkpoint.path} was removed while it was read, because its run has newer checkpoints. Give a newer "
                "--step."
            ) from None
        self.step = checkpoint.marker.step
        self.skipped = self.engine.skipped

    def train(self) -> None:
        """Train until the horizon, or until a signal asks to stop.

        Raises:
            StoppedError: SIGTERM, SIGUSR1 or SIGINT arrived; the state is saved, and the same command continues.
            DivergedError: too many updates in a row were skipped, or the weights are no longer finite.
            IncompleteError: a checkpoint or a callback's file could not be written, or another rank is gone.
        """
        # Start a new line: the progress bar may occupy the current one.
        newline = "\n" if sys.stderr.isatty() else ""
        notice = f"{newline}{_NOTICE}" if self.world.is_main else ""
        with asking(self._ask_to_stop, notice=notice, once_s=_ASKED_ONCE_S), failures_named():
            try:
                for callback in self.callbacks:
                    callback.before_training(self)
                with self._watchdog.running(), self._prefetcher() as batches:
                    self._loop(batches)
            finally:
                self._saving.close()
                for callback in self.callbacks:
                    callback.after_training(self)
        if self.stopping:
            reason = f"asked to stop after step {self.step} of {self.horizon.steps}"
            if self.saved == self.step:
                raise StoppedError(
                    f"{reason}; the state is saved in {self.folder}. The same command continues from there."
                )
            raise StoppedError(
                f"{reason}, whose loss or gradient is not finite, so its state is not saved. The same command "
                f"continues from step {self.saved or 0}."
            )

    @property
    def saved(self) -> int | None:
        """The step of the newest checkpoint; None without one."""
        return self._saving.saved

    def save(self, *, last: bool = False) -> None:
        """Save the current step, and remove checkpoints that are no longer kept.

        Nothing is saved while updates are being skipped: the run may have diverged, and good checkpoints would be
        replaced. Where the run ends at the skipped update of a spike, that step is saved without removing any other.

        Args:
            last: whether the run ends here; then the checkpoint is committed when this returns, even with
                `training.save_async`.

        Raises:
            IncompleteError: this checkpoint or the one before could not be written; earlier ones are untouched.
            DivergedError: the weights or the optimiser state are not finite. They are not saved.
        """
        wanted = not self.broken and (last or not self._skipping)
        if wanted:
            self.require_finite()
        with self._watchdog.bounded():
            if wanted and self.step not in (self._saving.saved, self._saving.pending):
                background = self.config.save_async and not last
                self._saving.save(self.step, self.seconds, background=background, keep_others=self._skipping)
            if last:
                self._saving.wait()

    def require_finite(self) -> None:
        """Check that the weights and the optimiser state are finite. Called on every rank.

        Raises:
            DivergedError: they are not.
        """
        if not self._is_finite():
            self.finish_saving()
            raise DivergedError(
                f"the weights or the optimiser state are not finite after step {self.step}, so it is not saved; "
                f"{self._kept()}. The same command continues from step {self.saved or 0}. If this happens again, "
                f"{self._remedy()}"
            )

    def finish_saving(self) -> None:
        """Wait until a checkpoint that is being written in the background is committed. Called on every rank.

        Raises:
            IncompleteError: as for `save`.
        """
        with self._watchdog.bounded():
            self._saving.wait()

    @property
    def asked_to_stop(self) -> bool:
        """Whether a signal asked this rank to stop."""
        return self._stop

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Run a block that may be abandoned: a first signal to stop raises `Abandoned` in it."""
        self._interruptible = True
        try:
            if self._stop:
                raise Abandoned
            yield
        finally:
            self._interruptible = False

    def stop_here(self) -> None:
        """Save this step and stop after it. Called on every rank.

        Raises:
            IncompleteError: as for `save`.
        """
        self.save(last=True)
        self.stopping = True

    def bounded(self) -> AbstractContextManager[None]:
        """A block under the time limit of a step (`training.hang_timeout_s`)."""
        return self._watchdog.bounded()

    def on_main(self, work: Callable[[], None]) -> None:
        """`World.on_main` under the time limit of a step, so that no rank waits for one that hangs."""
        with self._watchdog.bounded():
            self.world.on_main(work)

    def _after_save(self) -> None:
        for callback in self.callbacks:
            callback.after_save(self)

    def _prefetcher(self) -> Prefetcher:
        rank, ranks = self.world.rank, self.world.size
        return Prefetcher(
            lambda step: self.batches.rank_batch(step, rank, ranks),
            self.horizon.steps,
            self.world.device,
            ahead=self.ahead,
        )

    def _loop(self, batches: Prefetcher) -> None:
        window_tokens, window_seconds = 0, 0.0
        while self.step < self.horizon.steps and not self.stopping:
            began = time.perf_counter()
            rate = learning_rate(self.config, self.step, self.horizon.steps, self.horizon.warmup)
            with self._watchdog.bounded():
                batch = batches.get(self.step)
                waited = time.perf_counter() - began
                outcome = self.engine.train_step(batch, self._objective_of_step(), rate)
                self.step += 1
                lost = self._is_lost(outcome)
                flags = (lost, self.broken, self._skipped_in_a_row > 0, self._stop, *self._saving.under_way)
                diverged, self.broken, self._skipping, stopped, *under_way = self.world.any(*flags)
                self._saving.advance(*under_way)
                finished = self.step == self.horizon.steps
                diverged |= finished and self.broken
                logged = self._is_logged(finished)
                took = time.perf_counter() - began
                self.seconds += took
                window_seconds += took
                window_tokens += self.horizon.tokens_per_step
                measured = logged and not diverged
                values = self._values(outcome, rate, window_tokens / window_seconds) if measured else {}
                # Only logged steps have a loss here: reading it at every step would wait for the device.
                diverged |= outcome.applied and not math.isfinite(values.get("loss", 0.0))
                if diverged:
                    self._saving.wait()
                    raise DivergedError(self._diverged(outcome))
                if logged:
                    values["seconds"] = {"data": waited, **self.engine.watch.read()}
                    if saving := self._saving.read():
                        values["saving"] = saving
                    window_tokens, window_seconds = 0, 0.0
            step = Step(self.step, last=finished or stopped, logged=logged, values=values)
            self.stopping = stopped and not finished
            for callback in self.callbacks:
                callback.after_step(self, step)

    def _objective_of_step(self) -> Objective:
        if self.step in self.phase_starts:
            self.engine.forget_losses()
        return self.objective(self.step)

    def _is_logged(self, finished: bool) -> bool:
        every = self.config.log_every
        return bool(every) and (self.step == 1 or self.step % every == 0 or finished)

    def _is_lost(self, outcome: StepOutcome) -> bool:
        self.broken = False
        if self.config.zero_stage == 0:
            # At stage 0 DeepSpeed skips no update: values that are not finite are already in the weights.
            return not (math.isfinite(float(outcome.loss)) and math.isfinite(float(outcome.gradient_norm or 0.0)))
        if outcome.applied:
            self._skipped_in_a_row = 0
            return False
        self.skipped += 1
        # Scaled fp16 gradients overflow now and then, and DeepSpeed lowers the scale. A spike's update is skipped by
        # making its gradients overflow.
        finite = math.isfinite(float(outcome.loss))
        overflow = self.engine.precision == "fp16" and finite and not outcome.harmful
        self.broken = not (overflow or (finite and bool(outcome.harmful)))
        if not overflow:
            self._skipped_in_a_row += 1
        return self._skipped_in_a_row >= self.config.max_skipped

    def _values(self, outcome: StepOutcome, rate: float, tokens_per_second: float) -> dict[str, Any]:
        sums = {name: value for name, value in outcome.metrics.items() if not name.startswith("max_")}
        maxima = {name: value for name, value in outcome.metrics.items() if name.startswith("max_")}
        added = self.world.sum(torch.stack([outcome.loss, *sums.values()]).float().cpu()).tolist()
        highest = self.world.max(torch.stack(list(maxima.values())).float().cpu()).tolist() if maxima else []
        norm = outcome.gradient_norm
        return {
            "step": self.step,
            "tokens": self.step * self.horizon.tokens_per_step,
            "loss": added[0],
            **dict(zip(sums, added[1:], strict=True)),
            **dict(zip(maxima, highest, strict=True)),
            "learning_rate": rate,
            "grad_norm": None if norm is None else float(norm),
            "tokens_per_second": tokens_per_second,
            "mfu": self._share_of_peak(tokens_per_second * self.flops_per_token / self.world.size),
            "peak_memory": peak_memory(self.world.device),
            **({"skipped": self.skipped} if self.skipped else {}),
        }

    def _share_of_peak(self, flops: float) -> float:
        """Share of a rank's peak, at most 1: the convention counts more operations than attention computes."""
        if flops > self.peak_flops:
            again = peak_flops(self.world.device, self.engine.precision)
            self.peak_flops = max(self.peak_flops, again, flops)
        return flops / self.peak_flops

    def _is_finite(self) -> bool:
        return not self.world.any(not self.engine.is_finite())[0]

    def _kept(self) -> str:
        return "no checkpoint was written" if self.saved is None else f"the newest checkpoint is of step {self.saved}"

    def _remedy(self) -> str:
        back = "go back to an earlier checkpoint (--from-step, with --skip-batches to leave out its next batches), or "
        return (
            f"{back if self.saved else ''}train into another --output with a lower training.learning_rate (now "
            f"{self.config.learning_rate:g}), a longer training.warmup_ratio, or training.gradient_clipping (now "
            f"{self.config.gradient_clipping:g})."
        )

    def _diverged(self, outcome: StepOutcome) -> str:
        what = "the loss or the gradient is not finite"
        if self._skipped_in_a_row:
            what = f"{self._skipped_in_a_row} updates in a row were skipped, their losses not finite or spikes"
        return (
            f"{what}, up to step {self.step} (loss {float(outcome.loss):g}); {self._kept()}. "
            f"{self.world.on_main(self._dump)} To avoid it, {self._remedy()}"
        )

    def _dump(self) -> str:
        """Record the blocks and dataset rows of the last batch, never their text; return a sentence that says where."""
        step = self.step - 1
        facts = {
            "step": self.step,
            **self.batches.origin(step),
        }
        path = self.folder.parent / f"diverged-{self.step}.json"
        try:
            write_atomically(path, json.dumps(facts, indent=2) + "\n")
        except OSError as error:
            return f"The origin of the last batch could not be written to {path}: {error.strerror or error}."
        return f"The origin of the last batch is in {path}."

    def _ask_to_stop(self, number: int) -> None:
        self._stop = True
        if self._interruptible:
            self._interruptible = False
            raise Abandoned(signal.Signals(number).name)
