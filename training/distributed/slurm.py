"""Ranks that `srun` has started: what Slurm says of them, in the names that torchrun uses."""

import re
from collections.abc import Mapping

# Below the ports that Linux gives to outgoing connections, above those of services.
_FIRST_PORT, _PORTS = 15_000, 15_000


def slurm_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK and its kin, for a task of a step of several tasks; nothing for any other process.

    The variables are those of the step (https://slurm.schedmd.com/srun.html): a batch script knows the job's number of
    tasks too, but is none of them. Rank 0 is on the step's first node, unless tasks are distributed arbitrarily.

    Args:
        environment: of the process.
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
        # Jobs that share a machine, and steps of a job, must not meet.
        "MASTER_PORT": environment.get("MASTER_PORT", str(_FIRST_PORT + (job + 101 * step) % _PORTS)),
    }


def first_host(nodes: str) -> str:
    """The first of a list of hosts as Slurm writes it: `gpu[003-006,9]-ib,login1` begins with `gpu003-ib`."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _tasks(text: str) -> list[int]:
    """Tasks a node: `8(x2),4` is 8, 8, 4."""
    counts = (re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(","))
    return [int(count[1]) for count in counts if count for _ in range(int(count[2] or 1))]
