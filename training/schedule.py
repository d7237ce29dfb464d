"""Compute the number of steps, the division of batches, and the learning rate of every step."""

import math
from dataclasses import dataclass

from scorers.errors import UserError
from training.config import TrainConfig, TrainingConfig, as_written
from training.data.phases import plan_phases

_LARGEST_MICRO_BATCH = 8


@dataclass(frozen=True)
class Horizon:
    """The length of a run and the division of its batches.

    Attributes:
        steps: optimiser steps.
        batch_size: blocks per step over all ranks, `micro_batch_size * accumulation * ranks`.
        micro_batch_size: blocks per forward pass of a rank.
        accumulation: micro-batches per rank and step.
        ranks: processes that train.
        context_length: tokens per block.
        warmup: warm-up steps; None derives them from the settings and `steps`.
        same_until: number of first steps that a longer run with these settings would share; None for none.
    """

    steps: int
    batch_size: int
    micro_batch_size: int
    accumulation: int
    ranks: int
    context_length: int
    warmup: int | None = None
    same_until: int | None = None

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch."""
        return self.batch_size * self.context_length

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.tokens_per_step

    @property
    def predicted_per_step(self) -> int:
        """Predicted tokens of a global batch, over which means are taken: all but the first of each block."""
        return self.batch_size * (self.context_length - 1)


def plan_horizon(config: TrainingConfig, context_length: int, ranks: int) -> Horizon:
    """Divide `num_tokens` into steps, and each batch into micro-batches.

    Raises:
        UserError: the batch cannot be divided among the ranks, or a rank's share into micro-batches.
    """
    if config.batch_size % ranks:
        raise UserError(
            f"training.batch_size={config.batch_size} cannot be divided among {ranks} ranks; "
            f"choose a multiple of {ranks}."
        )
    share = config.batch_size // ranks
    micro = config.micro_batch_size
    if micro is None:
        micro = max(size for size in range(1, min(share, _LARGEST_MICRO_BATCH) + 1) if share % size == 0)
    elif share % micro:
        raise UserError(
            f"training.micro_batch_size={micro} does not divide a rank's share of the batch, {share} blocks "
            f"(batch_size={config.batch_size} over {ranks} ranks); choose a divisor of {share}."
        )
    steps = config.steps(context_length)
    return Horizon(steps, config.batch_size, micro, share // micro, ranks, context_length)


def warmup_steps(config: TrainingConfig, steps: int) -> int:
    """Return the warm-up steps of a run of `steps`: the setting, or the warm-up ratio, rounded up."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return math.ceil(as_written(config.warmup_ratio) * steps)


def decay_steps(config: TrainingConfig, steps: int) -> int:
    """Return the decay steps of `wsd` in a run of `steps`, before the warm-up limits them: the ratio, rounded up."""
    return math.ceil(as_written(config.decay_ratio) * steps)


def same_until(config: TrainConfig, steps: int, warmup: int) -> int | None:
    """Return the step up to which a run and a longer one with the same settings and warm-up are identical.

    With `constant` and `wsd` this is where the decay or a second phase begins, or `steps`. None with other schedules,
    whose rate depends on `steps` from the first step after the warm-up.
    """
    training = config.training
    if training.schedule not in ("constant", "wsd"):
        return None
    decays = _decay_begins(training, steps, warmup) if training.schedule == "wsd" else steps
    return min(decays, plan_phases(config.objective, steps)[0].end)


def learning_rate(config: TrainingConfig, step: int, steps: int, warmup: int | None = None) -> float:
    """Return the learning rate of a step (from 0) of `steps`: a pure function, so a resumed run needs no state.

    It rises linearly over `warmup` steps (by default `warmup_steps`), the last of which has the peak, then decays
    towards the minimum, which it would reach at step `steps`. `wsd` stays at the peak and decays only over the last
    decay_ratio * steps, by 1 - sqrt of their fraction (MiniCPM, arXiv 2404.06395; shape and share: Hägele et al., arXiv
    2405.18392).
    """
    peak, low = config.learning_rate, config.learning_rate * config.min_learning_rate_ratio
    if warmup is None:
        warmup = warmup_steps(config, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "wsd":
        begins = _decay_begins(config, steps, warmup)
        return low + (peak - low) * (1 - math.sqrt(max(0, step - begins) / (steps - begins)))
    progress = (step - warmup) / max(1, steps - warmup)
    remaining = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return low + (peak - low) * remaining


def _decay_begins(config: TrainingConfig, steps: int, warmup: int) -> int:
    return steps - max(1, min(decay_steps(config, steps), steps - warmup))
