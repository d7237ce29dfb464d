"""The callback that measures the validation loss on all ranks together."""

from typing import Any

import torch

from training.evaluation.validation import CountedLoss, Validation
from training.loop.callbacks import Callback, Step
from training.loop.trainer import Trainer
from training.runs import best
from training.runs.folder import RunFolder
from training.trackers.tracker import Tracker


class Validating(Callback):
    """Measures the loss on held-out text every few steps and at the last step.

    The ranks share the batches, and losses are added up in a fixed order, so the figures do not depend on the number of
    ranks. A run that is asked to stop abandons the validation and repeats it when it is resumed.

    Args:
        validation: the held-out text and the steps at which to measure.
        tracker: the tracker of rank 0; None on the others.
        console: the `rich.console.Console` that rank 0 prints on.
    """

    def __init__(self, validation: Validation, tracker: Tracker | None, console: Any) -> None:
        self.validation = validation
        self.tracker = tracker
        self.console = console

    def before_training(self, trainer: Trainer) -> None:
        """Validate the resumed step if the previous process ended after saving it and before validating it."""
        if trainer.step and self._is_due(trainer) and not trainer.world.on_main(lambda: _is_validated(trainer)):
            self._validate(trainer)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Validate if a validation is due."""
        if self._is_due(trainer) and not (trainer.stopping or trainer.broken):
            self._validate(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        return self.validation.is_due(trainer.step, trainer.horizon.steps)

    def _validate(self, trainer: Trainer) -> None:
        trainer.require_finite()
        world, batches = trainer.world, self.validation.batches
        nats = torch.zeros(len(batches), dtype=torch.float64)
        for start in range(0, len(batches), world.size):
            if any(world.any(trainer.asked_to_stop)):
                trainer.stop_here()
                return
            # With ZeRO 3 the ranks gather each other's weights, so every rank must compute in every round.
            mine = start + world.rank
            with trainer.bounded():
                found = trainer.engine.totals(batches[min(mine, len(batches) - 1)], CountedLoss())
            if mine < len(batches):
                nats[mine] = found["counted"]
        figures = self.validation.figures(world.sum(nats).tolist())
        trainer.on_main(lambda: self._record(trainer, figures))
        for callback in trainer.callbacks:
            callback.after_validation(trainer, figures["loss"])

    def _record(self, trainer: Trainer, figures: dict[str, float]) -> None:
        step = trainer.step
        best.record(trainer.folder, step, {best.VALIDATION_LOSS: figures["loss"]})
        # Write the line last: its presence means that everything else was recorded.
        if self.tracker is not None:
            tokens = step * trainer.horizon.tokens_per_step
            self.tracker.write({"step": step, "tokens": tokens, "validation": figures})
        self.console.print(
            f"step {step:,}/{trainer.horizon.steps:,}  validation loss {figures['loss']:.4f}  "
            f"{figures['bits_per_byte']:.4f} bits per byte",
            markup=False,
            soft_wrap=True,
        )


def _is_validated(trainer: Trainer) -> bool:
    lines = RunFolder(trainer.folder.parent).read_metrics()
    return any("validation" in line and line["step"] == trainer.step for line in lines)
