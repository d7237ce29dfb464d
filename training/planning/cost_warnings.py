"""The expected duration of a run and warnings about its settings, printed before step 0."""

import os

from pipeline.dataset.first_run import cpu_flops, first_run
from scorers.amounts import format_count, format_duration
from training.config import DataConfig, TrainingConfig
from training.planning.estimate import Machine
from training.schedule import decay_steps, warmup_steps

# After 16 repetitions a text adds little (arXiv 2305.16264, section 5).
_MOST_EPOCHS, _MOST_SECONDS = 16, 86_400
# Share of a GPU's peak that training reaches without tuning.
_SHARE_OF_GPU = 0.2
# With fewer steps a warm-up has no effect: Adam's second moment has hardly been estimated.
_LEAST_WARMUP = 3


def describe_duration(step_seconds: float | None, steps: int, tokens_per_step: int) -> str:
    """The expected duration as a line of the plan; `step_seconds` is None if the model cannot be estimated."""
    if step_seconds is None:
        return "not estimated for this model; each logged step prints its speed"
    rate = tokens_per_step / step_seconds
    return (
        f"about {format_duration(step_seconds * steps)} for {format_count(steps, 'step')}, {rate:,.0f} tokens/s "
        "on this machine"
    )


def no_held_out(config: DataConfig, documents: int) -> str:
    """A sentence that says that no document is held out of training, why, and what to do.

    Args:
        config: the settings of the data.
        documents: number of documents in the dataset.
    """
    share = config.held_out
    why = (
        "data.held_out is 0"
        if not share
        else f"data.held_out={share:g} of {format_count(documents, 'document')} is none"
    )
    return (
        f"no document is held out of training ({why}), so there is no validation loss, and `phf evaluate` cannot "
        "measure bits per byte. Hold out more, such as --set data.held_out=0.05."
    )


def schedule_warning(config: TrainingConfig, steps: int) -> str | None:
    """A warning if the run is too short for its schedule, else None."""
    warmup, decay = warmup_steps(config, steps), decay_steps(config, steps)
    name = "warmup_ratio" if config.warmup_steps is None else "warmup_steps"
    option = f"training.{name}={getattr(config, name):g} of {format_count(steps, 'step')}"
    if steps > 1 and config.warmup_steps is None and config.warmup_ratio and warmup < _LEAST_WARMUP:
        return (
            f"Warning: {option} is a warm-up of {format_count(warmup, 'step')}: the learning rate reaches its peak "
            "almost at once. Raise training.warmup_ratio or training.num_tokens if the loss jumps at the start."
        )
    if warmup >= steps > 1:
        return f"Warning: {option} is all of them: the learning rate never falls. Lower training.{name}."
    if config.schedule == "wsd" and warmup + decay > steps:
        return (
            f"Warning: {option} and training.decay_ratio={config.decay_ratio:g} of them exceed the run: the "
            f"rate decays over the {format_count(steps - warmup, 'step')} that the warm-up leaves."
        )
    return None


def cost_warning(
    seconds: float | None, epochs: float | None, tokens: float, machine: Machine, ranks: int
) -> str | None:
    """A warning if the run takes more than a day or repeats its texts many times, else None.

    Args:
        seconds: expected duration; None if unknown.
        epochs: passes over the stream; None if unknown.
        tokens: tokens per epoch.
        machine: the machine of a rank.
        ranks: number of ranks.
    """
    reasons = []
    if seconds is not None and seconds > _MOST_SECONDS:
        reasons.append(f"takes about {format_duration(seconds)} here")
    if epochs is not None and epochs > _MOST_EPOCHS:
        reasons.append(f"reads the same texts {epochs:,.0f} times (more than about {_MOST_EPOCHS} add little)")
    if not reasons:
        return None
    flops = _SHARE_OF_GPU * machine.flops * ranks if machine.on_gpu else cpu_flops(len(os.sched_getaffinity(0)))
    remedy = f" For this dataset and machine, try {first_run(tokens, flops).options}." if epochs is not None else ""
    return f"Warning: this run {' and '.join(reasons)}.{remedy} `phf train --plan` estimates other sizes."
