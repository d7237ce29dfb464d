"""Run commands of phf in processes: several jobs at once, each a sequence of commands with a log of its own."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from scorers import interpreter
from scorers.errors import EXIT_STOPPED, UserError
from scorers.shell import phf
from scorers.stopping import asking
from training.disk import writing
from training.distributed.launch import start_rank

State = Literal["waiting", "running", "finished", "failed", "stopped"]
TRAINING = "training"
_POLL_S = 0.1
# A log's end in which the error of a failed command is looked for, and the longest line that is shown.
_END_BYTES, _LONGEST_LINE = 16_384, 600
# With what the last line of a failed command begins, if it is its error (`scorers.errors`).
_PREFIXES = ("Error: ", "Stopped: ")
_NOTICE = "Stopping: runs save a checkpoint first. Signal again to stop at once.\n"


@dataclass(frozen=True)
class Stage:
    """A command of a job.

    Attributes:
        title: a verb, such as `training`.
        words: the command, after `phf`.
        done: whether there is nothing to do; called just before the command would start.
    """

    title: str
    words: Sequence[str]
    done: Callable[[], bool] = lambda: False


@dataclass
class Job:
    """Commands that run one after the other, and how far they are.

    Attributes:
        name: unique among jobs.
        log: file to which the commands' output is appended.
        stages: the commands.
        state: `stopped` is a command that ended by a signal and can continue.
        stage: index of the current command; the number of commands when all are done.
        reason: why the job failed; empty if it did not.
        seconds: time spent in commands.
    """

    name: str
    log: Path
    stages: Sequence[Stage]
    state: State = "waiting"
    stage: int = 0
    reason: str = ""
    seconds: float = 0.0
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)
    _slot: int = 0
    _signalled: bool = False
    _began: float = 0.0

    @property
    def title(self) -> str:
        """The title of the current command."""
        return self.stages[self.stage].title


class Display(Protocol):
    """What shows the progress of jobs."""

    def update(self, jobs: Sequence[Job]) -> None:
        """Show the jobs; called several times a second."""


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[Mapping[str, str]],
    display: Display,
    command: Callable[..., list[str]] = interpreter.command,
) -> bool:
    """Run jobs, as many at once as there are slots, until each is finished, failed or stopped.

    The first signal (SIGTERM, Ctrl-C) is passed on to the running commands, and no other is started; a second one
    kills them. If this process dies, commands receive SIGTERM.

    Args:
        jobs: in the order in which they start; their states are updated.
        slots: environment variables of each place for a job.
        display: shows the jobs.
        command: takes a module and arguments, and returns a command.

    Returns:
        Whether a signal asked to stop.

    Raises:
        IncompleteError: a log cannot be written.
    """
    received: list[int] = []
    free = list(range(len(slots)))
    waiting = list(jobs)
    running: list[Job] = []
    try:
        with asking(received.append, notice=_NOTICE):
            while running or (waiting and not received):
                while waiting and free and not received:
                    job = waiting.pop(0)
                    if _advance(job):
                        job._slot = free.pop(0)
                        running.append(job)
                        _start(job, slots[job._slot], command)
                for job in list(running):
                    if received and not job._signalled and job._process is not None:
                        job._signalled = True
                        job._process.send_signal(received[0])
                    if _poll(job, received, slots[job._slot], command):
                        running.remove(job)
                        free.append(job._slot)
                        free.sort()
                display.update(jobs)
                time.sleep(_POLL_S)
    finally:
        for job in running:
            if job._process is not None:
                job._process.kill()
                job._process.wait()
    return bool(received)


def _advance(job: Job) -> bool:
    """Move a job to its next command that has something to do; return whether there is one."""
    try:
        while job.stage < len(job.stages) and job.stages[job.stage].done():
            job.stage += 1
    except UserError as error:
        # Such as a damaged file of its run: the other jobs go on.
        job.state, job.reason = "failed", str(error)
        return False
    job.state = "running" if job.stage < len(job.stages) else "finished"
    return job.state == "running"


def _start(job: Job, variables: Mapping[str, str], command: Callable[..., list[str]]) -> None:
    words = job.stages[job.stage].words
    with writing(job.log):
        # A link may come with the folder: it could lead to any file of this user.
        log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    try:
        with writing(job.log):
            os.write(log, f"$ {phf(*words)}\n".encode(errors="surrogateescape"))
        job._process = start_rank(
            command("phf", *words),
            {**interpreter.environment(), **variables},
            orphaned=signal.SIGTERM,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    finally:
        os.close(log)
    job._began = time.monotonic()
    job._signalled = False


def _poll(job: Job, received: list[int], variables: Mapping[str, str], command: Callable[..., list[str]]) -> bool:
    """Note the end of a job's command, and start its next one; return whether the job has ended."""
    status = None if job._process is None else job._process.poll()
    if status is None:
        return False
    job.seconds += time.monotonic() - job._began
    if status == EXIT_STOPPED or -status in received:
        job.state = "stopped"
        return True
    if status:
        job.state, job.reason = "failed", _reason(job, status)
        return True
    job.stage += 1
    if not _advance(job):
        return True
    if received:
        job.state = "stopped"
        return True
    _start(job, variables, command)
    return False


def _reason(job: Job, status: int) -> str:
    """Return why a command failed: the error that it printed last, or how it ended."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name} while {job.title}"
    try:
        with job.log.open("rb") as file:
            file.seek(max(0, job.log.stat().st_size - _END_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    last = next((line for line in reversed(lines) if line.startswith(_PREFIXES)), "")
    return f"status {status} while {job.title}{': ' + last[:_LONGEST_LINE] if last else ''}"
