"""Run a rank on a node of a Ray cluster, in a process that a worker of Ray Train starts and watches.

The process is separate from the worker because it handles signals, is ended by its watchdog, and has an exit status of
its own, none of which works in a thread of an actor.
"""

import contextlib
import queue
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from infra.on_ray.mailbox import STDERR, STDOUT
from scorers import interpreter
from training.distributed.launch import DELIBERATE, deliberate_status, free_port, rank_environment, start_rank
from training.runs.folder import SHARED_MARK

_POLL_S = 0.1
# Seconds between polls for signals while the rank prints nothing.
_ASK_S = 0.5
# Seconds to wait for a new file, which a network file system may show late.
_SHARED_S = 30.0
_INITIAL_ENVIRONMENT = Path("/proc/self/environ")


class RankLostError(Exception):
    """A rank did not end deliberately; Ray Train restarts all ranks, up to its limit."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class RankJob:
    """What every rank runs.

    Attributes:
        arguments: arguments of `phf`.
        folder: working directory of the command.
        output: folder of the run.
        environment: variables that ranks get in addition to those of their node.
        gpu: whether each rank has a GPU.
        mailbox: actor handle of the `Mailbox`.
    """

    arguments: tuple[str, ...]
    folder: str
    output: str
    environment: Mapping[str, str]
    gpu: bool
    mailbox: Any


def run_rank(job: RankJob) -> None:
    """Run one rank to its end; each worker of Ray Train calls this in a thread.

    Raises:
        RankLostError: its process was killed, or ended with an unexpected error.
    """
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    context = get_context()
    rank = context.get_world_rank()
    if ray.get(job.mailbox.signals.remote()):
        # A request to stop came between two attempts.
        return
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    mine = {"address": address, "port": free_port(address), "mark": secrets.token_hex(8)} if rank == 0 else None
    place: dict[str, Any] = broadcast_from_rank_zero(mine)
    _check_folders(job, rank, address, place["mark"])
    if ray.get(job.mailbox.has_problems.remote()):
        return
    environment = _environment(job) | rank_environment(
        rank,
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
        place["address"],
        place["port"],
    )
    ray.get(job.mailbox.report_start.remote(rank))
    status = _run(job, environment)
    if status not in DELIBERATE:
        raise RankLostError(status)
    ray.get(job.mailbox.report_end.remote(rank, status))


def _check_folders(job: RankJob, rank: int, address: str, mark: str) -> None:
    """Report a problem if the command's folders differ from those of rank 0; return when every rank has checked."""
    import ray
    from ray.train.collective import barrier

    def report(problem: str) -> None:
        ray.get(job.mailbox.report_problem.remote(f"{socket.gethostname()} ({address})", problem))

    file, made = Path(job.output) / f"{SHARED_MARK}{mark}", False
    if not Path(job.folder).is_dir():
        report(f"there is no folder {job.folder}, in which the command was run")
    elif rank == 0:
        try:
            made = not file.parent.exists()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            report(f"cannot write to --output {job.output}: {error.strerror or error}")
    barrier()
    if rank:
        until = time.monotonic() + _SHARED_S
        while not file.exists() and not ray.get(job.mailbox.has_problems.remote()):
            if time.monotonic() > until:
                report(f"--output {job.output} does not hold what the node of rank 0 writes there")
            time.sleep(_POLL_S)
    barrier()
    if rank == 0:
        with contextlib.suppress(OSError):
            file.unlink()
            if made and ray.get(job.mailbox.has_problems.remote()):
                file.parent.rmdir()


def _environment(job: RankJob) -> dict[str, str]:
    environment = interpreter.environment() | dict(job.environment)
    # Drop Ray's value, unless the node itself sets one: Ray takes the number of reserved cores, but a rank shares all
    # cores of the node with the other ranks there.
    if not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in _INITIAL_ENVIRONMENT.read_bytes().split(b"\0")):
        environment.pop("OMP_NUM_THREADS", None)
    if not job.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _run(job: RankJob, environment: Mapping[str, str]) -> int:
    """Run the rank's process and return its exit status; its output goes to the mailbox, signals come from there."""
    import ray

    # A rank must not outlive its worker: Ray Train starts the next one as soon as the worker is gone.
    process = start_rank(
        interpreter.command("phf", *job.arguments),
        environment,
        orphaned=signal.SIGKILL,
        cwd=job.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    pieces: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    readers = [
        threading.Thread(target=_read, args=(stream, kind, pieces), daemon=True)
        for stream, kind in ((process.stdout, STDOUT), (process.stderr, STDERR))
    ]
    for reader in readers:
        reader.start()
    signals: list[int] = []
    forwarded, polled = 0, time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(_POLL_S)
            output = _all(pieces)
            if output or time.monotonic() - polled >= _ASK_S:
                signals = ray.get(job.mailbox.add_output.remote(output))
                polled = time.monotonic()
                for number in signals[forwarded:]:
                    process.send_signal(number)
                forwarded = len(signals)
        for reader in readers:
            # Use a timeout: a process that the rank left behind may keep the pipe open.
            reader.join(_ASK_S)
        ray.get(job.mailbox.add_output.remote(_all(pieces)))
        return deliberate_status(process.returncode, signals)
    finally:
        process.kill()
        process.wait()


def _read(stream: IO[bytes], kind: int, pieces: "queue.SimpleQueue[tuple[int, bytes]]") -> None:
    for line in stream:
        pieces.put((kind, line))


def _all(pieces: "queue.SimpleQueue[tuple[int, bytes]]") -> list[tuple[int, bytes]]:
    found = []
    with contextlib.suppress(queue.Empty):
        while True:
            found.append(pieces.get_nowait())
    return found
