"""Launch the ranks of one machine as child processes, stop them together, and restart them when one is lost.

`torchrun` does the same, but it replaces the exit status of its ranks by its own, kills them 30 seconds after it was
asked to stop, whether or not their checkpoint is written, and restarts them even where that cannot help.
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

# Set in the environment of ranks, which get the same arguments as their parent.
LAUNCHED = "PHF_LAUNCHED"
# Exit statuses of ranks that ended deliberately: done, refused, incomplete, stopped. With any other, a rank is lost.
DELIBERATE = (0, UserError.exit_code, IncompleteError.exit_code, EXIT_STOPPED)
_POLL_S = 0.1
# Time for the other ranks to notice that one is gone and exit; those that wait for it do not notice.
_LEAVE_S = 10.0
# If one rank was signalled by itself, the others stop with it in training. If they wait for it instead, they are
# signalled after _ALONE_S. Until _STOPPED_S, trackers of rank 0 may still send what they have.
_ALONE_S, _STOPPED_S = 5.0, 30.0
# Time for the other ranks to exit after one was refused or cannot continue; they may not have been notified.
_REFUSED_S = 90.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
# Load it before there are threads: nothing may be loaded between fork and exec.
_prctl = ctypes.CDLL(None).prctl

# Places where ranks can be started, each with its launcher (`module:name`): `phf.py` adds those of other packages.
LAUNCHERS: dict[str, str] = {"here": "training.distributed.launch:launch"}


@dataclass(frozen=True)
class Launch:
    """What to launch.

    Attributes:
        arguments: the arguments of `phf`, which ranks get too, with LAUNCHED in their environment.
        ranks: number of processes.
        max_restarts: how often to restart all ranks when one is lost: killed, or ended by an unexpected error.
        report: called with a line for each restart.
        output: folder of the run; None if the launcher does not need it.
        address: cluster to launch on; None for a local one, or none.
        cpus: cores to reserve per rank on a cluster.
        gpus: GPUs per rank, 0 or 1; None for one if there are any.
    """

    arguments: Sequence[str]
    ranks: int
    max_restarts: int
    report: Callable[[str], None]
    output: Path | None = None
    address: str | None = None
    cpus: int = 1
    gpus: int | None = None


def launch(request: Launch) -> int:
    """Run the ranks as child processes until they are done or end deliberately.

    Returns:
        0, or the exit status of the ranks (2, 4 or 75).

    Raises:
        IncompleteError: ranks were lost more than `max_restarts` times.
    """
    command = interpreter.command("phf", *request.arguments)
    restarts = 0
    while True:
        lost, asked_to_stop = _run(command, request.ranks)
        if isinstance(lost, int):
            return lost
        if asked_to_stop or restarts == request.max_restarts:
            raise give_up_error(lost, restarts, asked_to_stop=asked_to_stop)
        restarts += 1
        request.report(restart_message(lost, restarts, request.max_restarts))


def restart_message(lost: str, restart: int, of: int) -> str:
    """The message for a restart of all ranks; `lost` says which rank was lost and how."""
    return f"{lost}; starting again from the newest checkpoint (restart {restart} of {of})."


def give_up_error(lost: str, restarts: int, *, asked_to_stop: bool) -> IncompleteError:
    """The error for ranks that are not restarted."""
    if asked_to_stop:
        return IncompleteError(f"{lost} while all ranks were stopping. The same command continues.")
    again = f" after {restarts} restart{'s' if restarts > 1 else ''}" if restarts else ""
    return IncompleteError(f"{lost}{again}. The same command continues from the newest checkpoint.")


def _run(command: Sequence[str], ranks: int) -> tuple[int | str, bool]:
    """The exit status of all ranks, or which rank was lost and how; and whether the ranks were asked to stop."""
    port = free_port()
    processes: list[subprocess.Popen[bytes]] = []
    signals: list[int] = []

    def pass_on(number: int) -> None:
        signals.append(number)
        for process in processes:
            process.send_signal(number)

    try:
        # A second signal ends this block and kills the ranks.
        with asking(pass_on):
            for rank in range(ranks):
                processes.append(_start(command, rank, ranks, port))  # noqa: PERF401 - `finally` must see each
            for number in signals:
                # The signal arrived while ranks were being started, so not all of them received it.
                for process in processes:
                    process.send_signal(number)
            return _wait(processes, signals), bool(signals)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(command: Sequence[str], rank: int, ranks: int, port: int) -> "subprocess.Popen[bytes]":
    environment = interpreter.environment() | rank_environment(rank, ranks, rank, ranks, "127.0.0.1", port)
    # If the parent dies, ranks are asked to stop: they save and exit.
    return start_rank(command, environment, orphaned=signal.SIGTERM)


def rank_environment(rank: int, size: int, local_rank: int, local_size: int, address: str, port: int) -> dict[str, str]:
    """The environment variables of a rank, as under torchrun: its numbers, and where rank 0 listens."""
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
    """Start the process of a rank, which receives the signal `orphaned` when the calling thread ends.

    `options` are passed to `subprocess.Popen`.
    """
    return subprocess.Popen(  # noqa: S603 - this very command
        command,
        env=environment,
        # Ctrl-C on a terminal goes to the whole process group: the ranks would get it twice.
        start_new_session=True,
        preexec_fn=partial(_prepare, int(orphaned)),
        **options,
    )


def _prepare(orphaned: int) -> None:
    _prctl(_DIE_WITH_PARENT, orphaned)
    # Block signals until the rank can handle them (`phf.py` unblocks them): until then Ctrl-C would print a traceback,
    # and other signals would kill it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now."""
    with socket.socket() as listening:
        listening.bind((host, 0))
        port: int = listening.getsockname()[1]
    return port


def _wait(processes: "Sequence[subprocess.Popen[bytes]]", signals: list[int]) -> int | str:
    lost: str | None = None
    deadline = float("inf")
    stopped: float | None = None
    while True:
        statuses = [process.poll() for process in processes]
        ended = [
            (rank, deliberate_status(status, signals)) for rank, status in enumerate(statuses) if status is not None
        ]
        if stopped is None and any(status == EXIT_STOPPED for _, status in ended):
            stopped = time.monotonic()
            deadline = min(deadline, stopped + _STOPPED_S)
        if stopped is not None and not signals and time.monotonic() > stopped + _ALONE_S:
            signals.append(signal.SIGTERM)
            for process in processes:
                process.send_signal(signal.SIGTERM)
        if lost is None:
            # A rank killed by a signal is the cause; errors of other ranks at the same time follow from it.
            causes = sorted((status, rank) for rank, status in ended if status not in DELIBERATE)
            if causes:
                lost, deadline = describe_loss(*causes[0]), time.monotonic() + _LEAVE_S
            elif any(status in (UserError.exit_code, IncompleteError.exit_code) for _, status in ended):
                deadline = min(deadline, time.monotonic() + _REFUSED_S)
        if len(ended) == len(processes) or time.monotonic() > deadline:
            if lost is not None:
                return lost
            return EXIT_STOPPED if stopped is not None else next((status for _, status in ended if status), 0)
        time.sleep(_POLL_S)


def deliberate_status(status: int, signals: Sequence[int]) -> int:
    """The exit status of a rank; `EXIT_STOPPED` if a signal that we sent killed it before it could handle signals."""
    return EXIT_STOPPED if -status in signals else status


def describe_loss(status: int, rank: int) -> str:
    """Which rank was lost, and how its process ended; `status` is negative for the signal that killed it."""
    if status < 0:
        return f"Rank {rank} was killed by {signal.Signals(-status).name}"
    return (
        f"Rank {rank} ended with status {status} (an error, or it hung: then `stacks/` in the run's folder says where)"
    )
