"""What a run costs, printed before step 0: its duration, its epochs, and a warning with what would suit instead."""

import os

from pipeline.dataset.first_run import cpu_flops, first_run
from scorers.amounts import count_of, duration
from training.config import DataConfig, TrainingConfig
from training.planning.estimate import Machine
from training.schedule import decay_steps, warmup_steps

# Past 16 repetitions a text teaches little (arXiv 2305.16264, section 5).
_MOST_EPOCHS, _MOST_SECONDS = 16, 86_400
# Of a GPU's peak, what training reaches without tuning.
_SHARE_OF_GPU = 0.2
# Fewer steps are no warm-up: Adam's second moment has seen next to nothing.
_LEAST_WARMUP = 3


def describe_duration(step_seconds: float | None, steps: int, tokens_per_step: int) -> str:
    """How long so many steps take, as a line of the plan; None where the model cannot be estimated."""
    if step_seconds is None:
        return "not estimated for this model; each logged step prints its speed"
    rate = tokens_per_step / step_seconds
    return f"about {duration(step_seconds * steps)} for {count_of(steps, 'step')}, {rate:,.0f} tokens/s on this machine"


def no_held_out(config: DataConfig, documents: int) -> str:
    """The sentence that nothing is held out of training, and what to do.

    Args:
        config: of the data.
        documents: of the dataset.
    """
    share = config.held_out
    why = "data.held_out is 0" if not share else f"data.held_out={share:g} of {count_of(documents, 'document')} is none"
    return (
        f"no document is held out of training ({why}), so there is no validation loss, and `phf evaluate` cannot "
        "measure bits per byte. Hold out more, such as --set data.held_out=0.05."
    )


def schedule_warning(config: TrainingConfig, steps: int) -> str | None:
    """A warning of a run that is too short for its schedule; None of any other.

    Args:
        config: of the training.
        steps: of the run.
    """
    warmup, decay = warmup_steps(config, steps), decay_steps(config, steps)
    name = "warmup_ratio" if config.warmup_steps is None else "warmup_steps"
    asked = f"training.{name}={getattr(config, name):g} of {count_of(steps, 'step')}"
    if steps > 1 and config.warmup_steps is None and config.warmup_ratio and warmup < _LEAST_WARMUP:
        return (
            f"Warning: {asked} is a warm-up of {count_of(warmup, 'step')}: the learning rate is at its peak almost at "
            "once. Raise training.warmup_ratio, or training.num_tokens, where the loss jumps at first."
        )
    if warmup >= steps > 1:
        return f"Warning: {asked} is all of them: the learning rate never falls. Lower training.{name}."
    if config.schedule == "wsd" and warmup + decay > steps:
        return (
            f"Warning: {asked} and training.decay_ratio={config.decay_ratio:g} of them are more than there are: the "
            f"rate decays over the {count_of(steps - warmup, 'step')} that the warm-up leaves."
        )
    return None


def cost_warning(
    seconds: float | None, epochs: float | None, tokens: float, machine: Machine, ranks: int
) -> str | None:
    """A warning of a run that takes more than a day or repeats its texts many times; None of any other.

    Args:
        seconds: that it takes; None where that is not known.
        epochs: over the stream; None where they are not known.
        tokens: of an epoch.
        machine: what a rank computes on.
        ranks: of the run.
    """
    reasons = []
    if seconds is not None and seconds > _MOST_SECONDS:
        reasons.append(f"takes about {duration(seconds)} here")
    if epochs is not None and epochs > _MOST_EPOCHS:
        reasons.append(f"reads the same texts {epochs:,.0f} times (more than some {_MOST_EPOCHS} teach little)")
    if not reasons:
        return None
    flops = _SHARE_OF_GPU * machine.flops * ranks if machine.on_gpu else cpu_flops(len(os.sched_getaffinity(0)))
    remedy = f" What suits this dataset and machine: {first_run(tokens, flops).options}." if epochs is not None else ""
    return f"Warning: this run {' and '.join(reasons)}.{remedy} `phf train --plan` estimates other sizes."
