"""Callbacks of the training loop: tracking, checkpointing, evaluation and the progress display."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from training.distributed.abandoning import unless_stopped
from training.runs import best
from training.runs.folder import RunFolder
from training.trackers.tracker import Tracker

if TYPE_CHECKING:
    from training.loop.trainer import Trainer


@dataclass(frozen=True)
class Step:
    """A finished step, the same on every rank.

    Attributes:
        number: steps done, including this one.
        last: whether the run ends here, at its horizon or because it was asked to stop.
        logged: whether this step is logged.
        values: the line of a logged step in `metrics.jsonl`; empty for other steps.
    """

    number: int
    last: bool
    logged: bool
    values: dict[str, Any] = field(default_factory=dict)


class Callback:
    """Base class of callbacks, whose methods do nothing. The trainer calls each on every rank, in their order."""

    def before_training(self, trainer: Trainer) -> None:
        """Called before the first step of this process."""

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Called after each step."""

    def after_save(self, trainer: Trainer) -> None:
        """Called after a checkpoint is committed."""

    def after_validation(self, trainer: Trainer, loss: float) -> None:
        """Called after the loss on held-out text was measured, in nats per token."""

    def after_training(self, trainer: Trainer) -> None:
        """Called at the end, even if the loop raises."""


class Tracking(Callback):
    """Writes logged steps to the tracker of rank 0."""

    def __init__(self, tracker: Tracker | None) -> None:
        self.tracker = tracker

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Write a logged step."""
        if step.logged:
            trainer.on_main(lambda: self._write(step))

    def after_training(self, trainer: Trainer) -> None:
        """Close the tracker."""
        if self.tracker is not None:
            self.tracker.close()

    def _write(self, step: Step) -> None:
        if self.tracker is not None:
            self.tracker.write(step.values)


class Checkpointing(Callback):
    """Saves every `every` steps, and always at the last step, whose checkpoint is committed before the run ends.

    Unless `every` is 0, it also saves at the step from which a longer run would differ, so that one can continue there.

    Args:
        every: steps between checkpoints; 0 saves only the last step.
        loss: whether to record the mean of the losses logged since the last checkpoint, to choose the best by.
    """

    def __init__(self, every: int, *, loss: bool = False) -> None:
        self.every = every
        self._loss = loss
        self._losses: list[float] = []

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Save if a checkpoint is due."""
        # The loss of a skipped step may not be finite.
        if step.logged and math.isfinite(step.values["loss"]):
            self._losses.append(step.values["loss"])
        due = self.every and (step.number % self.every == 0 or step.number == trainer.horizon.same_until)
        if not (step.last or due):
            return
        if self._loss and self._losses:
            mean = sum(self._losses) / len(self._losses)
            trainer.world.on_main(lambda: best.record(trainer.folder, step.number, {best.LOSS: mean}))
        self._losses.clear()
        trainer.save(last=step.last)


class Evaluation(Callback):
    """Evaluates the model on rank 0 every `every` steps, while the other ranks wait.

    A run that is asked to stop abandons the evaluation: it saves this step, stops, and evaluates when it is resumed.

    Args:
        every: steps between evaluations; 0 for never.
        evaluate: takes the Hugging Face model, the step, and a function to call between batches, which may raise;
            returns figures for `metrics.jsonl`.
        tracker: the tracker of rank 0; None on the others.
    """

    def __init__(
        self,
        every: int,
        evaluate: Callable[[Any, int, Callable[[], None]], dict[str, float]],
        tracker: Tracker | None,
    ) -> None:
        self.every = every
        self.evaluate = evaluate
        self.tracker = tracker

    def before_training(self, trainer: Trainer) -> None:
        """Evaluate the resumed step if the previous process ended after saving it and before evaluating it."""
        if trainer.step and self._is_due(trainer.step) and not trainer.world.on_main(lambda: _is_evaluated(trainer)):
            self._evaluate(trainer)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Evaluate if an evaluation is due."""
        if self._is_due(step.number) and not (trainer.stopping or trainer.broken):
            trainer.require_finite()
            self._evaluate(trainer)

    def _is_due(self, step: int) -> bool:
        return bool(self.every) and step % self.every == 0

    def _evaluate(self, trainer: Trainer) -> None:
        world, step, figures = trainer.world, trainer.step, None
        # A checkpoint that is not committed yet would be lost if the run were killed during the evaluation.
        trainer.finish_saving()
        if not any(world.any(trainer.asked_to_stop)):
            model = trainer.engine.whole_model()

            def evaluate(check_stop: Callable[[], None]) -> dict[str, float]:
                with trainer.interruptible():
                    return self.evaluate(model, step, check_stop)

            trainer.evaluating = True
            figures = unless_stopped(world, lambda: trainer.asked_to_stop, evaluate)
            trainer.evaluating = False
        if figures is None:
            trainer.stop_here()
        else:
            found = figures
            world.on_main(lambda: self._record(trainer, step, found))

    def _record(self, trainer: Trainer, step: int, figures: dict[str, float]) -> None:
        best.record(trainer.folder, step, figures)
        # Write the line last: its presence means that everything else was recorded.
        if self.tracker is not None:
            tokens = step * trainer.horizon.tokens_per_step
            self.tracker.write({"step": step, "tokens": tokens, "evaluation": figures})


def _is_evaluated(trainer: Trainer) -> bool:
    lines = RunFolder(trainer.folder.parent).read_metrics()
    return any("evaluation" in line and line["step"] == trainer.step for line in lines)


class Console(Callback):
    """The progress display of rank 0: a bar on a terminal, a plain line every few seconds elsewhere.

    Args:
        console: a `rich.console.Console`.
        plain_every: minimum seconds between plain lines.
        patience: seconds after which a line says that the first step takes longer.
    """

    def __init__(self, console: Any, plain_every: float = 5.0, patience: float = 10.0) -> None:
        self.console = console
        self.plain_every = plain_every
        self._bar: Any = None
        self._task: Any = None
        self._last_printed = float("-inf")
        self._slow: threading.Timer | None = None
        self._patience = patience

    def before_training(self, trainer: Trainer) -> None:
        """Open the bar."""
        line = (
            f"Step {trainer.step + 1:,} of {trainer.horizon.steps:,} takes longer than {self._patience:g} s. Ctrl-C "
            "stops after the step and saves it; a second Ctrl-C stops at once."
        )
        self._slow = threading.Timer(self._patience, self._print, [line])
        self._slow.daemon = True
        self._slow.start()
        if not self.console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=trainer.horizon.steps, completed=trainer.step, figures="")
        self._bar.start()

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Show the step."""
        self._stop_waiting()
        if self._bar is not None:
            figures = {"figures": _figures(step.values)} if step.logged else {}
            self._bar.update(self._task, completed=step.number, **figures)
            return
        now = time.monotonic()
        if step.logged and (step.last or now - self._last_printed >= self.plain_every):
            self._last_printed = now
            self._print(f"step {step.number:,}/{trainer.horizon.steps:,}  {_figures(step.values)}")

    def after_training(self, trainer: Trainer) -> None:
        """Close the bar."""
        self._stop_waiting()
        if self._bar is not None:
            self._bar.stop()

    def _stop_waiting(self) -> None:
        if self._slow is not None:
            self._slow.cancel()

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def _figures(values: dict[str, Any]) -> str:
    norm = values["grad_norm"]
    shown = [
        f"loss {values['loss']:.4f}",
        f"lr {values['learning_rate']:.2e}",
        *([] if norm is None else [f"norm {norm:.2f}"]),
        f"{values['tokens_per_second']:,.0f} tokens/s",
        f"{values['mfu']:.0%} MFU",
    ]
    return "  ".join(shown)
