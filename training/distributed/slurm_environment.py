"""Ranks started by `srun`: translate Slurm's environment variables to those of torchrun."""

import re
from collections.abc import Mapping

# Below Linux's ephemeral ports, above those of most services.
_FIRST_PORT, _PORTS = 15_000, 15_000


def slurm_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK and related variables for a task of a job step with several tasks; empty for any other process.

    The variables read are those of the step (https://slurm.schedmd.com/srun.html): a batch script sees the job's number
    of tasks too, but is not one of them. Rank 0 is on the step's first node, unless tasks are distributed arbitrarily.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1 or "WORLD_SIZE" in environment:
        return {}
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(_tasks(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]),
        "MASTER_ADDR": environment.get("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"])),
        # Jobs on the same machine, and steps of a job, need different ports.
        "MASTER_PORT": environment.get("MASTER_PORT", str(_FIRST_PORT + (job + 101 * step) % _PORTS)),
    }


def first_host(nodes: str) -> str:
    """The first host of a Slurm host list: `gpu003-ib` of `gpu[003-006,9]-ib,login1`."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _tasks(text: str) -> list[int]:
    """Tasks per node: `8(x2),4` is 8, 8, 4."""
    counts = (re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(","))
    return [int(count[1]) for count in counts if count for _ in range(int(count[2] or 1))]
