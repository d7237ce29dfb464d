"""How many runs fit on this machine at once, and the share of it that each gets."""

import os
from collections.abc import Sequence

import torch

from scorers.doctor.machine import usable_cores
from scorers.errors import UserError
from training.planning.forecast import forecast
from training.planning.machines import MachineOptions
from training.sweep.config import SweepRun

# Memory of a process beyond what the plan estimates: Python with torch, DeepSpeed and transformers loaded.
_PROCESS_BYTES = 1.0e9
# Share of the machine's memory that the runs may take.
_SHARE = 0.8

Environment = dict[str, str]


def slots(runs: Sequence[SweepRun], at_once: int | None) -> list[Environment]:
    """Return the environment variables of each place for a run: its share of the cores, and its GPU if there are any.

    The share depends on the sweep alone, not on what is left to do: a run that continues computes with as many threads
    as before, and so gets the same bits.

    Args:
        runs: all runs of the sweep.
        at_once: runs at once; None for as many as fit.
    """
    gpus = _gpus()
    number = min(len(runs), at_once or len(gpus) or _fitting(runs))
    threads = str(max(1, usable_cores() // number))
    shares = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
    return [
        {**shares, **({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {})} for place in range(number)
    ]


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    named = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def _fitting(runs: Sequence[SweepRun]) -> int:
    """Return the number of runs at once for which there are cores and memory; at least 1."""
    cores = usable_cores()
    if min(cores, len(runs)) == 1:
        return 1
    fitting = [cores]
    for run in {each.without_seed: each for each in runs}.values():
        try:
            found = forecast(run.config, MachineOptions())
        except UserError:
            # A model whose memory cannot be estimated.
            return 1
        # Of the whole memory, not of what is free now, for the number must not change when the sweep continues.
        fitting.append(int(_SHARE * found.machine.memory / (found.memory.total + _PROCESS_BYTES)))
    return max(1, min(fitting))
