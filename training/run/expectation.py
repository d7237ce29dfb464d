"""What a run costs, printed before step 0: its duration, its epochs, and a warning with what would suit instead."""

import os

from pipeline.dataset.first_run import cpu_flops, first_run
from scorers.amounts import count_of, duration
from training.run.estimate import Machine

# Past 16 repetitions a text teaches little (arXiv 2305.16264, section 5).
_MOST_EPOCHS, _MOST_SECONDS = 16, 86_400
# Of a GPU's peak, what training reaches without tuning.
_SHARE_OF_GPU = 0.2


def describe_duration(step_seconds: float | None, steps: int, tokens_per_step: int) -> str:
    """How long so many steps take, as a line of the plan; None where the model cannot be estimated."""
    if step_seconds is None:
        return "not estimated for this model; each logged step prints its speed"
    rate = tokens_per_step / step_seconds
    return f"about {duration(step_seconds * steps)} for {count_of(steps, 'step')}, {rate:,.0f} tokens/s on this machine"


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
