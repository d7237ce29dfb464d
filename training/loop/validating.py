"""The callback that measures the validation loss, all ranks together."""

from typing import Any

import torch

from training.evaluation.validation import CountedLoss, Validation
from training.loop.callbacks import Callback, Step
from training.loop.trainer import Trainer
from training.runs import best
from training.runs.folder import RunFolder
from training.trackers.tracker import Tracker


class Validating(Callback):
    """Predicts held-out text every so many steps, and at the last.

    The ranks share the batches, and what each costs is added up in one order: the figures are the same for any number
    of ranks. A run that is asked to stop does not wait for them: it is validated when it goes on.

    Args:
        validation: what is predicted.
        tracker: of rank 0.
        console: a `rich.console.Console` that rank 0 prints on.
    """

    def __init__(self, validation: Validation, tracker: Tracker | None, console: Any) -> None:
        self.validation = validation
        self.tracker = tracker
        self.console = console

    def before_training(self, trainer: Trainer) -> None:
        """Validate where the process before ended between its checkpoint and the figures of that step."""
        if trainer.step and self._is_due(trainer) and not trainer.world.on_main(lambda: _is_validated(trainer)):
            self._validate(trainer)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Validate when it is time to."""
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
            # With ZeRO 3 the ranks hand each other the weights, so each computes something in every round.
            mine = start + world.rank
            with trainer.bounded():
                found = trainer.engine.totals(batches[min(mine, len(batches) - 1)], CountedLoss())
            if mine < len(batches):
                nats[mine] = found["counted"]
        figures = self.validation.figures(world.sum(nats).tolist())
        trainer.on_main(lambda: self._record(trainer, figures))

    def _record(self, trainer: Trainer, figures: dict[str, float]) -> None:
        step = trainer.step
        best.record(trainer.folder, step, {best.VALIDATION_LOSS: figures["loss"]})
        # The line comes last: where it is, all is there.
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
