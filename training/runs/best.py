"""Choose the best checkpoint by figures recorded per step, in a file beside the checkpoints."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import FiniteFloat, TypeAdapter

from scorers.errors import UserError
from scorers.stored import Count, read_stored
from training.config import TrainConfig
from training.disk import write_atomically, writing
from training.runs import checkpoints
from training.runs.report import MAXIMUM_OF

FIGURES_NAME = "figures.json"
LOSS = "loss"
# Recorded by `training.loop.validation_callback`.
VALIDATION_LOSS = "validation_loss"
# Recorded by evaluations; see `training.runs.report`.
EVALUATED = ("misalignment", "expected_maximum", "hit_rate", "bits_per_byte")
_ALL = (VALIDATION_LOSS, *EVALUATED, LOSS)

Mode = Literal["min", "max"]

_FIGURES = TypeAdapter(dict[Count, dict[str, FiniteFloat]])


def record(folder: Path, step: int, figures: Mapping[str, float]) -> None:
    """Record figures of the model after `step` steps in the folder of the checkpoints, leaving out those not finite.

    Raises:
        IncompleteError: the file cannot be written.
    """
    known = read(folder)
    known[step] = {**known.get(step, {}), **{name: value for name, value in figures.items() if math.isfinite(value)}}
    with writing(folder / FIGURES_NAME):
        write_atomically(folder / FIGURES_NAME, json.dumps(known, indent=2) + "\n")


def forget_after(folder: Path, step: int) -> None:
    """Remove the figures of later steps, after the run went back to `step`.

    Raises:
        OSError: the file cannot be written.
    """
    known = read(folder)
    kept = {each: figures for each, figures in known.items() if each <= step}
    if kept != known:
        write_atomically(folder / FIGURES_NAME, json.dumps(kept, indent=2) + "\n")


def read(folder: Path) -> dict[int, dict[str, float]]:
    """The figures by step; empty where none were recorded or the file is damaged, as training does not depend on it."""
    try:
        return _FIGURES.validate_json(read_stored(folder / FIGURES_NAME))
    except (OSError, ValueError):
        return {}


def best_steps(folder: Path, metric: str | None, mode: Mode) -> list[int]:
    """Steps whose checkpoint exists and has the metric, best first, and the later first among equals."""
    if metric is None:
        return []
    figures = read(folder)
    found = [(figures[step][metric], step) for step in checkpoints.steps(folder) if metric in figures.get(step, {})]
    sign = 1 if mode == "min" else -1
    return [step for _, step in sorted(found, key=lambda each: (sign * each[0], -each[1]))]


def check_best(config: TrainConfig) -> None:
    """Refuse settings under which no checkpoint could be chosen as the best.

    Raises:
        UserError: says which setting to change.
    """
    training, metric = config.training, config.training.best_metric
    if metric is None:
        if training.keep_best:
            raise UserError(f"training.keep_best={training.keep_best} needs training.best_metric: {', '.join(_ALL)}.")
        return
    if metric not in _ALL:
        raise UserError(f"training.best_metric={metric} is not known. It is one of {', '.join(_ALL)}.")
    if not training.save_every:
        raise UserError(
            f"training.best_metric={metric} has no checkpoints to choose from: training.save_every is 0. Set it."
        )
    if metric == LOSS:
        if not training.log_every:
            raise UserError("training.best_metric=loss is over logged steps, and training.log_every is 0. Set it.")
        if config.objective.starts_at or config.objective.cooldown:
            raise UserError(
                "training.best_metric=loss would compare losses of different phases (objective.starts_at, "
                f"objective.cooldown). Choose one of {', '.join(_ALL[:-1])}."
            )
        return
    if metric == VALIDATION_LOSS:
        _check_validation(config)
        return
    if not training.evaluate_every:
        raise UserError(
            f"training.best_metric={metric} is measured by evaluations: set training.evaluate_every to a multiple of "
            f"training.save_every (now {training.save_every})."
        )
    if training.evaluate_every % training.save_every:
        raise UserError(
            f"training.evaluate_every={training.evaluate_every} is not a multiple of training.save_every="
            f"{training.save_every}: some of the models evaluated for training.best_metric={metric} would have no "
            "checkpoint. Change one of them."
        )
    if metric == "expected_maximum" and config.evaluation.num_samples < MAXIMUM_OF:
        raise UserError(
            f"training.best_metric=expected_maximum is over {MAXIMUM_OF} samples: set evaluation.num_samples (now "
            f"{config.evaluation.num_samples}) to at least that."
        )
    if metric == "bits_per_byte" and not (config.data.held_out and config.evaluation.held_out_documents):
        raise UserError(
            "training.best_metric=bits_per_byte is measured on held-out documents: set data.held_out and "
            "evaluation.held_out_documents above 0."
        )


def _check_validation(config: TrainConfig) -> None:
    training, every = config.training, config.training.validate_every
    if not config.data.held_out:
        raise UserError(
            f"training.best_metric={VALIDATION_LOSS} is measured on held-out documents: set data.held_out above 0."
        )
    if every == 0:
        raise UserError(
            f"training.best_metric={VALIDATION_LOSS} is never measured with training.validate_every=0: leave that out."
        )
    if every is not None and every % training.save_every:
        raise UserError(
            f"training.validate_every={every} is not a multiple of training.save_every={training.save_every}, and only "
            f"a saved step can be the best by {VALIDATION_LOSS}. Change one of them, or leave it out."
        )
