"""What happens around the training loop: each concern is a callback with a few moments."""

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
    """A step that was just made, the same on every rank.

    Attributes:
        number: steps done, this one included.
        last: whether the run ends here, by its horizon or because it was asked to stop.
        logged: whether it is one to log.
        values: what a logged step's line in `metrics.jsonl` holds; empty for the others.
    """

    number: int
    last: bool
    logged: bool
    values: dict[str, Any] = field(default_factory=dict)


class Callback:
    """Called by the trainer on every rank, in the order of the callbacks; override what is needed."""

    def before_training(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """After each step."""

    def after_save(self, trainer: Trainer) -> None:
        """After a checkpoint was committed."""

    def after_training(self, trainer: Trainer) -> None:
        """At the end, also when the loop raises."""


class Tracking(Callback):
    """Writes logged steps to the tracker of rank 0."""

    def __init__(self, tracker: Tracker | None) -> None:
        self.tracker = tracker

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """One line a logged step."""
        if step.logged:
            trainer.on_main(lambda: self._write(step))

    def after_training(self, trainer: Trainer) -> None:
        """Close the files."""
        if self.tracker is not None:
            self.tracker.close()

    def _write(self, step: Step) -> None:
        if self.tracker is not None:
            self.tracker.write(step.values)


class Checkpointing(Callback):
    """Saves every `every` steps, 0 for never, and at the last step always: that one is a checkpoint before it ends.

    With the others comes one where a longer run would begin to differ, so that it can go on from there.

    Args:
        every: steps.
        loss: whether to note the mean of the losses logged since the last checkpoint, by which the best one is chosen.
    """

    def __init__(self, every: int, *, loss: bool = False) -> None:
        self.every = every
        self._loss = loss
        self._losses: list[float] = []

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Save when it is time to."""
        # That of a skipped step may be no number.
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
    """Evaluates the model on rank 0 every `every` steps, while the others wait.

    A run that is asked to stop does not wait for it: it stops at this step, saved, and is evaluated when it goes on.

    Args:
        every: steps; 0 for never.
        evaluate: from the Hugging Face model, the step, and a function to call between batches, which may raise, to
            numbers for `metrics.jsonl`.
        tracker: of rank 0.
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
        """Evaluate where the process before ended between its checkpoint and the figures of that step."""
        if trainer.step and self._is_due(trainer.step) and not trainer.world.on_main(lambda: _is_evaluated(trainer)):
            self._evaluate(trainer)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Evaluate when it is time to."""
        if self._is_due(step.number) and not (trainer.stopping or trainer.broken):
            trainer.require_finite()
            self._evaluate(trainer)

    def _is_due(self, step: int) -> bool:
        return bool(self.every) and step % self.every == 0

    def _evaluate(self, trainer: Trainer) -> None:
        world, step, figures = trainer.world, trainer.step, None
        # It would be lost with a run that is killed meanwhile, however long ago it was written.
        trainer.finish_saving()
        if not any(world.any(trainer.asked_to_stop)):
            model = trainer.engine.whole_model()

            def evaluate(look: Callable[[], None]) -> dict[str, float]:
                with trainer.interruptible():
                    return self.evaluate(model, step, look)

            figures = unless_stopped(world, lambda: trainer.asked_to_stop, evaluate)
        if figures is None:
            trainer.stop_here()
        else:
            found = figures
            world.on_main(lambda: self._record(trainer, step, found))

    def _record(self, trainer: Trainer, step: int, figures: dict[str, float]) -> None:
        best.record(trainer.folder, step, figures)
        # The line comes last: where it is, all is there.
        if self.tracker is not None:
            tokens = step * trainer.horizon.tokens_per_step
            self.tracker.write({"step": step, "tokens": tokens, "evaluation": figures})


def _is_evaluated(trainer: Trainer) -> bool:
    lines = RunFolder(trainer.folder.parent).read_metrics()
    return any("evaluation" in line and line["step"] == trainer.step for line in lines)


class Console(Callback):
    """Tells rank 0's user how far it is: a bar on a terminal, a plain line every few seconds elsewhere.

    Args:
        console: a `rich.console.Console`.
        plain_every: seconds between plain lines, at least.
        patience: seconds after which a line says that the first step takes longer.
    """

    def __init__(self, console: Any, plain_every: float = 5.0, patience: float = 10.0) -> None:
        self.console = console
        self.plain_every = plain_every
        self._bar: Any = None
        self._task: Any = None
        self._told = float("-inf")
        self._slow: threading.Timer | None = None
        self._patience = patience

    def before_training(self, trainer: Trainer) -> None:
        """Open the bar."""
        line = (
            f"Step {trainer.step + 1:,} of {trainer.horizon.steps:,} takes longer than {self._patience:g} s. Ctrl-C "
            "stops after a step, saved; a second one at once."
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
        if step.logged and (step.last or now - self._told >= self.plain_every):
            self._told = now
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
