"""The callback of `phf match` that estimates how close the model is, and replaces the proposal."""

from dataclasses import asdict
from typing import Any, Literal

from training.loop.callbacks import Callback, Step
from training.loop.trainer import Trainer
from training.matching.drawing import key_of
from training.matching.matcher import is_better, moments
from training.matching.session import Session
from training.trackers.tracker import Tracker


class Checking(Callback):
    """Draws fresh samples of the proposal every few steps, logs estimates, and replaces the proposal if that is worse.

    A check changes what later steps depend on. So it is done even where the run stops, and before the checkpoint of its
    step is saved.

    Args:
        session: the models.
        every: steps between checks.
        samples: of a check.
        closer_by: how model and proposal are compared.
        tracker: the tracker of rank 0; None on the others.
        console: the `rich.console.Console` that rank 0 prints on.
    """

    def __init__(
        self,
        session: Session,
        every: int,
        samples: int,
        closer_by: Literal["kl", "tvd"],
        tracker: Tracker | None,
        console: Any,
    ) -> None:
        self._session, self._every, self._samples, self._closer_by = session, every, samples, closer_by
        self._tracker, self._console = tracker, console

    def after_step(self, trainer: Trainer, step: Step) -> None:
        """Check if a check is due."""
        if step.number % self._every or trainer.broken:
            return
        trainer.require_finite()
        with trainer.bounded():
            found = self._session.sample(trainer.engine.model, key_of("check", step.number), self._samples)
            figures = self._session.matcher.measure(found.logs)
            better = not self._session.is_on_policy and is_better(figures, self._closer_by)
            if better:
                self._session.replace_proposal(trainer.engine.model)
        values = {
            **asdict(figures),
            **{f"reached_{number}": value for number, value in enumerate(moments(found.logs, found.features), 1)},
            "replaced": int(better),
        }
        trainer.on_main(lambda: self._record(trainer, values))

    def _record(self, trainer: Trainer, values: dict[str, float]) -> None:
        if self._tracker is not None:
            tokens = trainer.step * trainer.horizon.tokens_per_step
            self._tracker.write({"step": trainer.step, "tokens": tokens, "matching": values})
        reached = ", ".join(f"{value:.4g}" for name, value in values.items() if name.startswith("reached_"))
        self._console.print(
            f"step {trainer.step:,}/{trainer.horizon.steps:,}  KL from target {values['kl_target']:.4f}  KL to the run "
            f"before {values['kl_prior']:.4f}  TVD {values['tvd']:.4f}  reached {reached}"
            + ("  new proposal" if values["replaced"] else ""),
            markup=False,
            soft_wrap=True,
        )
