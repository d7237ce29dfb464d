"""The training loop: a batch by its step's number, an update, and the callbacks around them."""

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
from scorers.stopping import ONCE_S, asking
from training.config import TrainingConfig
from training.data.batches import Batches
from training.data.prefetch import Prefetcher
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
from training.runs.folder import write_atomically
from training.schedule import Horizon, learning_rate

_NOTICE = (
    "Stopping: this step is finished and saved first, and the same command goes on from there. Interrupt again to "
    "leave at once, without saving it.\n"
)
# Signals that come within so many seconds are one.
_ASKED_ONCE_S = ONCE_S


class DivergedError(IncompleteError):
    """The loss or the gradient is not finite, or too many updates in a row were skipped."""


@dataclass
class Trainer:
    """Trains an engine to its horizon. All ranks run it alike.

    Attributes:
        engine, batches, horizon, config, world: what is trained, on what, for how long.
        objective: the loss of a step, steps counted from 0.
        folder: of the checkpoints.
        flops_per_token: floating-point operations a trained token.
        peak_flops: what one rank could do of them in a second; see `training.engine.timing`. Measured again where steps
            reach more, as the machine was busy then.
        callbacks: called in this order.
        anew: steps with which another phase begins, whose losses are not to be compared with those before.
        step: optimiser steps done.
        seconds: time spent in steps, those of earlier processes of the run included.
        skipped: updates that were skipped of the steps done, by earlier processes of the run too.
        broken: whether the last update was skipped because its loss or gradient was no number; such a state is neither
            saved nor evaluated.
        stopping: whether the run stops here, as any rank was asked to; the same on every rank.
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
    anew: Collection[int] = ()
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    broken: bool = False
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
        """Take up a verified checkpoint.

        Raises:
            IncompleteError: it is of another number of ranks, and there is no room to rewrite it in.
            UserError: its weights, or the optimiser's state, are not finite.
        """
        self.engine.load(checkpoint.path)
        if not self._is_finite():
            raise UserError(
                f"The checkpoint {checkpoint.path} holds weights that are no numbers, from which nothing can be "
                "learnt. Move it away, and the same command goes on from the one before."
            )
        self.step = self._saving.saved = checkpoint.marker.step
        self.skipped = self.engine.skipped
        self.seconds = checkpoint.marker.seconds

    def begin_with(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Begin with a verified checkpoint of another run, which is only read.

        Raises:
            UserError: it went away meanwhile.
            IncompleteError: as `resume`.
        """
        self.world.on_main(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        try:
            self.engine.load(checkpoint.path, self.folder)
        except FileNotFoundError:
            raise UserError(f"{checkpoint.path} went away while it was read, as its run has newer ones.") from None
        self.step = checkpoint.marker.step
        self.skipped = self.engine.skipped

    def train(self) -> None:
        """Train until the horizon, or until a signal asks to stop.

        Raises:
            StoppedError: SIGTERM, SIGUSR1 or SIGINT came; the state is saved, the same command goes on.
            DivergedError: too many updates in a row were skipped, or one was not and did harm.
            IncompleteError: a checkpoint or a callback's file could not be written, or another rank is gone.
        """
        # A line of its own, also where a bar is on the last one.
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
            asked = f"asked to stop after step {self.step} of {self.horizon.steps}"
            if self.saved == self.step:
                raise StoppedError(
                    f"{asked}; the state is saved in {self.folder}. The same command goes on from there."
                )
            raise StoppedError(
                f"{asked}, whose loss or gradient is no number, so that its state is not saved. The same command goes "
                f"on from step {self.saved or 0}."
            )

    @property
    def saved(self) -> int | None:
        """The step of the newest checkpoint; None without one."""
        return self._saving.saved

    def save(self, *, last: bool = False) -> None:
        """Save the current step, and let the oldest checkpoint go.

        While updates are being skipped nothing is saved, as that would replace good checkpoints: the run may have
        diverged. Where it ends at the skipped update of a spike, that step is saved besides.

        Args:
            last: whether the run ends here; then it is a checkpoint when this returns, also with
                `training.save_async`.

        Raises:
            IncompleteError: it, or the one before, could not be written; the earlier ones are untouched.
            DivergedError: the weights, or the optimiser's state, are not finite. They are not saved.
        """
        wanted = not self.broken and (last or not self._skipping)
        if wanted:
            self.require_finite()
        with self._watchdog.bounded():
            if wanted and self.step not in (self._saving.saved, self._saving.pending):
                beside = self.config.save_async and not last
                self._saving.save(self.step, self.seconds, beside=beside, besides=self._skipping)
            if last:
                self._saving.wait()

    def require_finite(self) -> None:
        """End the run where it cannot learn any more, whatever its loss. Every rank calls it.

        Raises:
            DivergedError: the weights, or the optimiser's state, are not finite.
        """
        if not self._is_finite():
            self.finish_saving()
            raise DivergedError(
                f"weights, or what the optimiser remembers of them, are no numbers after step {self.step}, so that it "
                f"is not saved; {self._kept()}. The same command goes on from step {self.saved or 0}. If that happens "
                f"again: {self._remedy()}"
            )

    def finish_saving(self) -> None:
        """Wait until a checkpoint that is being written beside the loop is one. Every rank calls it.

        Raises:
            IncompleteError: as `save`.
        """
        with self._watchdog.bounded():
            self._saving.wait()

    @property
    def asked_to_stop(self) -> bool:
        """Whether a signal asked this rank to stop."""
        return self._stop

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """What the loop does not need and can be given up: a first signal to stop raises `Abandoned` in the block."""
        self._interruptible = True
        try:
            if self._stop:
                raise Abandoned
            yield
        finally:
            self._interruptible = False

    def stop_here(self) -> None:
        """Stop after this step, which is saved, whatever else was to be done. Every rank calls it.

        Raises:
            IncompleteError: as `save`.
        """
        self.save(last=True)
        self.stopping = True

    def bounded(self) -> AbstractContextManager[None]:
        """A block that is taken to hang as a step is."""
        return self._watchdog.bounded()

    def on_main(self, work: Callable[[], None]) -> None:
        """`World.on_main` for what takes no longer than a step, so that none waits for a rank that hangs in it."""
        with self._watchdog.bounded():
            self.world.on_main(work)

    def _after_save(self) -> None:
        for callback in self.callbacks:
            callback.after_save(self)

    def _prefetcher(self) -> Prefetcher:
        rank, ranks = self.world.rank, self.world.size
        return Prefetcher(
            lambda step: self.batches.rank_batch(step, rank, ranks), self.horizon.steps, self.world.device
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
                asked = logged and not diverged
                values = self._values(outcome, rate, window_tokens / window_seconds) if asked else {}
                # Of logged steps alone: at each it would be to wait for the device.
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
        if self.step in self.anew:
            self.engine.forget_losses()
        return self.objective(self.step)

    def _is_logged(self, finished: bool) -> bool:
        every = self.config.log_every
        return bool(every) and (self.step == 1 or self.step % every == 0 or finished)

    def _is_lost(self, outcome: StepOutcome) -> bool:
        self.broken = False
        if self.config.zero_stage == 0:
            # DeepSpeed skips nothing then: what is not finite is in the weights.
            return not (math.isfinite(float(outcome.loss)) and math.isfinite(float(outcome.gradient_norm or 0.0)))
        if outcome.applied:
            self._skipped_in_a_row = 0
            return False
        self.skipped += 1
        # fp16's scaled gradients overflow now and then, and DeepSpeed lowers the scale. Those of a spike are made to.
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
        """What steps reach of a rank's peak; the convention counts more than attention computes, so 1 at most."""
        if flops > self.peak_flops:
            again = peak_flops(self.world.device, self.engine.precision)
            self.peak_flops = max(self.peak_flops, again, flops)
        return flops / self.peak_flops

    def _is_finite(self) -> bool:
        return not self.world.any(not self.engine.is_finite())[0]

    def _kept(self) -> str:
        return "no checkpoint was written" if self.saved is None else f"the newest checkpoint is of step {self.saved}"

    def _remedy(self) -> str:
        back = "go back to a checkpoint before it (--from-step, and --skip-batches to leave out what comes there), or "
        return (
            f"{back if self.saved else ''}train into another --output with a lower training.learning_rate (now "
            f"{self.config.learning_rate:g}), a longer training.warmup_ratio, or training.gradient_clipping (now "
            f"{self.config.gradient_clipping:g})."
        )

    def _diverged(self, outcome: StepOutcome) -> str:
        what = "the loss or the gradient is not finite"
        if self._skipped_in_a_row:
            what = f"{self._skipped_in_a_row} updates in a row were skipped, their losses no numbers or spikes"
        return (
            f"{what}, up to step {self.step} (loss {float(outcome.loss):g}); {self._kept()}. "
            f"{self.world.on_main(self._dump)} To avoid it, {self._remedy()}"
        )

    def _dump(self) -> str:
        """Write down which blocks, and rows of the dataset, the last batch was made of, never their text; say where."""
        step = self.step - 1
        facts = {
            "step": self.step,
            **self.batches.origin(step),
        }
        path = self.folder.parent / f"diverged-{self.step}.json"
        try:
            write_atomically(path, json.dumps(facts, indent=2) + "\n")
        except OSError as error:
            return f"What the last batch was made of could not be written to {path}: {error.strerror or error}."
        return f"What the last batch was made of stands in {path}."

    def _ask_to_stop(self, number: int) -> None:
        self._stop = True
        if self._interruptible:
            self._interruptible = False
            raise Abandoned(signal.Signals(number).name)
