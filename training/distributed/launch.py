"""Ranks of one machine as processes of ours: they start, stop and fall together, and start again where one was lost.

`torchrun` does so too, but it replaces the status of its ranks by its own, kills them 30 seconds after it was asked to
stop, whether their checkpoint is written or not, and starts again also where that cannot help.
"""

import ctypes
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scorers import interpreter
from scorers.errors import EXIT_STOPPED, IncompleteError, UserError
from scorers.stopping import SIGNALS, asking

# Set in the environment of ranks, which have the same arguments as their parent.
LAUNCHED = "PHF_LAUNCHED"
# Of a rank that ended as it should: done, refused, incomplete, stopped. Whatever else it is, it was lost.
MEANT = (0, UserError.exit_code, IncompleteError.exit_code, EXIT_STOPPED)
_POLL_S = 0.1
# Ranks find out by themselves that one of them is gone, unless they wait for it.
_LEAVE_S = 10.0
# Where one was signalled by itself, the others stop with it in training; where they wait for it, they are signalled
# after so long. Trackers of rank 0 may still send what they have.
_ALONE_S, _STOPPED_S = 5.0, 30.0
# They hear that one of them was refused or cannot go on, unless it could not tell them.
_REFUSED_S = 90.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
# Looked up before there are threads: nothing may be loaded between fork and exec.
_prctl = ctypes.CDLL(None).prctl

# Where ranks can be started, and the function that does it (`module:name`): `phf.py` adds those of other parts.
LAUNCHERS: dict[str, str] = {"here": "training.distributed.launch:launch"}


@dataclass(frozen=True)
class Launch:
    """What a launcher is asked for.

    Attributes:
        arguments: of `phf`, as they were given: ranks have the same, and LAUNCHED in their environment.
        ranks: processes.
        max_restarts: how often all are started again when one was lost: killed, or ended by an error of no kind.
        tell: called with a line for each restart.
        output: folder of the run; None where the launcher need not know.
        address: cluster on which they start; None for one of its own, or for none.
        cpus: cores a rank, to be reserved on a cluster.
        gpus: GPUs a rank, 0 or 1; None for one where there are any.
    """

    arguments: Sequence[str]
    ranks: int
    max_restarts: int
    tell: Callable[[str], None]
    output: Path | None = None
    address: str | None = None
    cpus: int = 1
    gpus: int | None = None


def launch(asked: Launch) -> int:
    """Run the ranks as processes of this one until all end well, or end as they mean to.

    Returns:
        0, or the status with which the ranks left (2, 4 or 75).

    Raises:
        IncompleteError: ranks were lost once more than `max_restarts`.
    """
    command = interpreter.command("phf", *asked.arguments)
    restarts = 0
    while True:
        lost, asked_to_stop = _run(command, asked.ranks)
        if isinstance(lost, int):
            return lost
        if asked_to_stop or restarts == asked.max_restarts:
            raise given_up(lost, restarts, asked_to_stop=asked_to_stop)
        restarts += 1
        asked.tell(restarting(lost, restarts, asked.max_restarts))


def restarting(lost: str, restart: int, of: int) -> str:
    """What is said where all ranks start again; `lost` says which was lost and how."""
    return f"{lost}; starting again from the newest checkpoint (restart {restart} of {of})."


def given_up(lost: str, restarts: int, *, asked_to_stop: bool) -> IncompleteError:
    """The error where they do not."""
    if asked_to_stop:
        return IncompleteError(f"{lost}, when all were asked to stop. The same command goes on.")
    again = f" after {restarts} restart{'s' if restarts > 1 else ''}" if restarts else ""
    return IncompleteError(f"{lost}{again}. The same command goes on from the newest checkpoint.")


def _run(command: Sequence[str], ranks: int) -> tuple[int | str, bool]:
    """The status with which all ranks left, or which of them was lost and how; and whether they were asked to stop."""
    port = free_port()
    processes: list[subprocess.Popen[bytes]] = []
    signals: list[int] = []

    def pass_on(number: int) -> None:
        signals.append(number)
        for process in processes:
            process.send_signal(number)

    try:
        # A second signal ends this block, and the ranks with it.
        with asking(pass_on):
            for rank in range(ranks):
                processes.append(_start(command, rank, ranks, port))  # noqa: PERF401 - `finally` must see each
            for number in signals:
                # It came while they were started, and not all of them have received it.
                for process in processes:
                    process.send_signal(number)
            return _wait(processes, signals), bool(signals)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(command: Sequence[str], rank: int, ranks: int, port: int) -> "subprocess.Popen[bytes]":
    environment = interpreter.environment() | rank_environment(rank, ranks, rank, ranks, "127.0.0.1", port)
    # Without their parent nobody would collect them: they save, and stop.
    return start_rank(command, environment, orphaned=signal.SIGTERM)


def rank_environment(rank: int, size: int, local_rank: int, local_size: int, address: str, port: int) -> dict[str, str]:
    """What a rank finds in its environment, as under torchrun: who it is, and where rank 0 listens."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        LAUNCHED: "1",
    }


def start_rank(
    command: Sequence[str], environment: Mapping[str, str], *, orphaned: signal.Signals, **options: Any
) -> "subprocess.Popen[bytes]":
    """Start the process of a rank, which gets the signal `orphaned` when the thread that called this is gone.

    `options` are those of `subprocess.Popen`.
    """
    return subprocess.Popen(  # noqa: S603 - this very command
        command,
        env=environment,
        # A terminal's Ctrl-C goes to a whole group: the ranks would get it twice.
        start_new_session=True,
        preexec_fn=partial(_prepare, int(orphaned)),
        **options,
    )


def _prepare(orphaned: int) -> None:
    _prctl(_DIE_WITH_PARENT, orphaned)
    # Until it can listen, and lets them in (`phf.py`): Python would print a traceback of Ctrl-C, and end of the others.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def free_port(host: str = "127.0.0.1") -> int:
    """A port at which nobody listens now."""
    with socket.socket() as listening:
        listening.bind((host, 0))
        port: int = listening.getsockname()[1]
    return port


def _wait(processes: "Sequence[subprocess.Popen[bytes]]", asked: list[int]) -> int | str:
    lost: str | None = None
    deadline = float("inf")
    stopped: float | None = None
    while True:
        statuses = [process.poll() for process in processes]
        ended = [(rank, meant(status, asked)) for rank, status in enumerate(statuses) if status is not None]
        if stopped is None and any(status == EXIT_STOPPED for _, status in ended):
            stopped = time.monotonic()
            deadline = min(deadline, stopped + _STOPPED_S)
        if stopped is not None and not asked and time.monotonic() > stopped + _ALONE_S:
            asked.append(signal.SIGTERM)
            for process in processes:
                process.send_signal(signal.SIGTERM)
        if lost is None:
            # A signal is a cause; an error of another rank at the same time is what follows from it.
            causes = sorted((status, rank) for rank, status in ended if status not in MEANT)
            if causes:
                lost, deadline = describe_loss(*causes[0]), time.monotonic() + _LEAVE_S
            elif any(status in (UserError.exit_code, IncompleteError.exit_code) for _, status in ended):
                deadline = min(deadline, time.monotonic() + _REFUSED_S)
        if len(ended) == len(processes) or time.monotonic() > deadline:
            if lost is not None:
                return lost
            return EXIT_STOPPED if stopped is not None else next((status for _, status in ended if status), 0)
        time.sleep(_POLL_S)


def meant(status: int, asked: Sequence[int]) -> int:
    """The status of a rank; stopped, where a signal that it was sent on purpose ended it before it could listen."""
    return EXIT_STOPPED if -status in asked else status


def describe_loss(status: int, rank: int) -> str:
    """Which rank was lost, and how its process ended; `status` is negative for the signal that killed it."""
    if status < 0:
        return f"Rank {rank} was killed by {signal.Signals(-status).name}"
    return (
        f"Rank {rank} ended with status {status} (an error; or it hung, and `stacks/` in the run's folder says where)"
    )
