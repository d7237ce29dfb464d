"""Ranks of one machine as processes of ours: they start, stop and fall together, and start again where one was lost.

`torchrun` does so too, but it replaces the status of its ranks by its own, kills them 30 seconds after it was asked to
stop, whether their checkpoint is written or not, and starts again also where that cannot help.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from scorers.errors import IncompleteError, StoppedError, UserError

# Set in the environment of ranks, which have the same arguments as their parent.
LAUNCHED = "PHF_LAUNCHED"
# Of a rank that ended as it should: done, refused, incomplete, stopped. Whatever else it is, it was lost.
_MEANT = (0, UserError.exit_code, IncompleteError.exit_code, StoppedError.exit_code)
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_POLL_S = 0.1
# Ranks find out by themselves that one of them is gone, unless they wait for it.
_LEAVE_S = 10.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def launch(command: Sequence[str], *, ranks: int, max_restarts: int, tell: Callable[[str], None]) -> int:
    """Run `command` in so many processes until all end well, or end as they mean to.

    Args:
        command: of one rank; which one it is stands in its environment, as under torchrun.
        ranks: processes.
        max_restarts: how often all are started again when one was lost: killed, or ended by an error of no kind.
        tell: is told of it, a line a time.

    Returns:
        0, or the status with which the ranks left (2, 4 or 75).

    Raises:
        IncompleteError: ranks were lost once more than `max_restarts`.
    """
    for restart in range(max_restarts + 1):
        lost, asked_to_stop = _run(command, ranks)
        if isinstance(lost, int):
            return lost
        if asked_to_stop:
            raise IncompleteError(f"{lost}, when all were asked to stop. The same command goes on.")
        if restart < max_restarts:
            tell(f"{lost}; starting again from the newest checkpoint (restart {restart + 1} of {max_restarts}).")
    again = f" after {max_restarts} restart{'s' if max_restarts > 1 else ''}" if max_restarts else ""
    raise IncompleteError(f"{lost}{again}. The same command goes on from the newest checkpoint.")


def _run(command: Sequence[str], ranks: int) -> tuple[int | str, bool]:
    """The status with which all ranks left, or which of them was lost and how; and whether they were asked to stop."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with _forwarding(processes) as signals:
            processes += [_start(command, rank, ranks, port) for rank in range(ranks)]
            return _wait(processes), bool(signals)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(command: Sequence[str], rank: int, ranks: int, port: int) -> "subprocess.Popen[bytes]":
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    environment = {name: str(number) for name, number in numbers.items()}
    return subprocess.Popen(  # noqa: S603 - this very command
        command,
        # torch prints a stack of C++ where a peer is gone, which is said in one line here.
        env={"TORCH_CPP_LOG_LEVEL": "FATAL", **os.environ, **environment, "MASTER_ADDR": "127.0.0.1", LAUNCHED: "1"},
        # A terminal's Ctrl-C goes to a whole group: the ranks would get it twice.
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def _wait(processes: "Sequence[subprocess.Popen[bytes]]") -> int | str:
    lost: str | None = None
    deadline = float("inf")
    while True:
        statuses = [process.poll() for process in processes]
        ended = [(rank, status) for rank, status in enumerate(statuses) if status is not None]
        if lost is None:
            # A signal is a cause; an error of another rank at the same time is what follows from it.
            causes = sorted((status, rank) for rank, status in ended if status not in _MEANT)
            if causes:
                lost, deadline = _describe(*causes[0]), time.monotonic() + _LEAVE_S
        if len(ended) == len(processes):
            return next((status for _, status in ended if status), 0) if lost is None else lost
        if lost is not None and time.monotonic() > deadline:
            return lost
        time.sleep(_POLL_S)


def _describe(status: int, rank: int) -> str:
    if status < 0:
        return f"Rank {rank} was killed by {signal.Signals(-status).name}"
    return (
        f"Rank {rank} ended with status {status} (an error; or it hung, and `stacks/` in the run's folder says where)"
    )


@contextmanager
def _forwarding(processes: "Sequence[subprocess.Popen[bytes]]") -> Iterator[list[int]]:
    """Pass on to the ranks what the parent is asked; the signals that came."""
    came: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        came.append(number)
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rank_command() -> list[str]:
    """This very command, for a rank."""
    return [sys.executable, "-m", "phf", *sys.argv[1:]]
