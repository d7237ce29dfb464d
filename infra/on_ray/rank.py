"""A rank on a node of a Ray cluster: a process like any other, started and watched by a worker of Ray Train.

The process is not the worker itself: it handles signals, is ended by its watchdog, and leaves with a status of its own,
none of which a thread in an actor can.
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
from training.distributed.launch import MEANT, free_port, meant, rank_environment, start_rank
from training.runs.folder import SHARED_MARK

_POLL_S = 0.1
# Signals are looked for so often where nothing is printed.
_ASK_S = 0.5
# A network file system may show a new file late.
_SHARED_S = 30.0
_INITIAL_ENVIRONMENT = Path("/proc/self/environ")


class RankLostError(Exception):
    """A rank did not end as it should; Ray Train starts all of them again, if it may."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class RankJob:
    """What every rank needs to know.

    Attributes:
        arguments: of `phf`.
        folder: working folder of the command.
        output: folder of the run.
        environment: variables that ranks get beside those of their node.
        gpu: whether each has a GPU.
        desk: handle of the `Desk`.
    """

    arguments: tuple[str, ...]
    folder: str
    output: str
    environment: Mapping[str, str]
    gpu: bool
    desk: Any


def run_rank(job: RankJob) -> None:
    """Run one rank to its end; called by each worker of Ray Train, in a thread.

    Raises:
        RankLostError: its process was killed, or ended by an error of no kind.
    """
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    context = get_context()
    rank = context.get_world_rank()
    if ray.get(job.desk.signals.remote()):
        # Asked to stop between two attempts.
        return
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    mine = {"address": address, "port": free_port(address), "mark": secrets.token_hex(8)} if rank == 0 else None
    place: dict[str, Any] = broadcast_from_rank_zero(mine)
    _check_folders(job, rank, address, place["mark"])
    if ray.get(job.desk.refused.remote()):
        return
    environment = _environment(job) | rank_environment(
        rank,
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
        place["address"],
        place["port"],
    )
    ray.get(job.desk.start.remote(rank))
    status = _run(job, environment)
    if status not in MEANT:
        raise RankLostError(status)
    ray.get(job.desk.end.remote(rank, status))


def _check_folders(job: RankJob, rank: int, address: str, mark: str) -> None:
    """Tell the desk where the folders of the command are not those of rank 0; returns when every rank has looked."""
    import ray
    from ray.train.collective import barrier

    def refuse(problem: str) -> None:
        ray.get(job.desk.refuse.remote(f"{socket.gethostname()} ({address})", problem))

    file, made = Path(job.output) / f"{SHARED_MARK}{mark}", False
    if not Path(job.folder).is_dir():
        refuse(f"there is no folder {job.folder}, in which the command was given")
    elif rank == 0:
        try:
            made = not file.parent.exists()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            refuse(f"cannot write to --output {job.output}: {error.strerror or error}")
    barrier()
    if rank:
        until = time.monotonic() + _SHARED_S
        while not file.exists() and not ray.get(job.desk.refused.remote()):
            if time.monotonic() > until:
                refuse(f"--output {job.output} does not hold what the node of rank 0 writes there")
            time.sleep(_POLL_S)
    barrier()
    if rank == 0:
        with contextlib.suppress(OSError):
            file.unlink()
            if made and ray.get(job.desk.refused.remote()):
                file.parent.rmdir()


def _environment(job: RankJob) -> dict[str, str]:
    environment = interpreter.environment() | dict(job.environment)
    # Ray sets it to the cores that were reserved, where the node says nothing; how many threads there are is not for
    # it to say: a rank shares the node's cores with the others there.
    if not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in _INITIAL_ENVIRONMENT.read_bytes().split(b"\0")):
        environment.pop("OMP_NUM_THREADS", None)
    if not job.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _run(job: RankJob, environment: Mapping[str, str]) -> int:
    """The status of the rank's process, whose output goes to the desk, from where signals come."""
    import ray

    # A rank must not outlive its worker: Ray Train starts the next one as soon as that is gone.
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
    passed, asked = 0, time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(_POLL_S)
            output = _all(pieces)
            if output or time.monotonic() - asked >= _ASK_S:
                signals = ray.get(job.desk.print.remote(output))
                asked = time.monotonic()
                for number in signals[passed:]:
                    process.send_signal(number)
                passed = len(signals)
        for reader in readers:
            # A process that the rank has left behind may keep its end open.
            reader.join(_ASK_S)
        ray.get(job.desk.print.remote(_all(pieces)))
        return meant(process.returncode, signals)
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
