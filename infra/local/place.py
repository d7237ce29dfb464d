"""The place `local`: this machine, detached from the terminal."""

import os
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from infra.local.processes import RUNS, is_alive, pid_of, start_time
from infra.submission.job import AGAIN, Job, State, Status, ended
from infra.submission.place import Place
from infra.submission.store import Event, JobFiles
from scorers import interpreter
from scorers.errors import UserError
from scorers.printing import printable
from scorers.shell import phf, quoted


@dataclass(frozen=True)
class NoOptions:
    """The command line of the job says everything."""


class Local(Place):
    """Starts a job in a session of its own, which outlives the terminal."""

    name = "local"
    Options = NoOptions

    def render(self, job: Job, options: Any, files: JobFiles) -> str:  # noqa: D102 - see Place, here and below
        return f"cd {quoted(job.folder)} && {phf(*job.words)} >> {quoted(files.log)} 2>&1\n"

    def submit(self, job: Job, options: Any, files: JobFiles) -> dict[str, str]:  # noqa: D102
        command = interpreter.command("infra.local.runner", str(files.folder), job.id)
        command += interpreter.command("phf", *job.words)
        log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            process = subprocess.Popen(  # noqa: S603 - phf itself
                command,
                cwd=job.folder,
                env=interpreter.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        return {"host": socket.gethostname(), "pid": str(process.pid), "started": str(start_time(process.pid))}

    def status(self, job: Job, files: JobFiles) -> Status:  # noqa: D102
        events = files.read_events()
        cancelled = any(event.what == "cancelled" for event in events)
        if done := [event for event in events if event.what == "ended"]:
            status = ended(int(done[-1].value))
            stopped = cancelled and status.state is State.STOPPED
            return Status(State.CANCELLED, AGAIN, status.exit_status) if stopped else status
        if not _runs_here(job):
            return Status(State.RUNNING, f"on {printable(job.handle['host'])}, the only machine that can see it")
        alive = _alive(job, events)
        if alive and str(alive[0]) != job.handle["pid"]:
            return Status(State.RUNNING, f"stopping: its runner was killed; its own process is {alive[0]}")
        if alive:
            return Status(State.RUNNING, "stopping" if cancelled else "")
        return Status(State.LOST, f"killed, or its machine was restarted: {AGAIN}")

    def cancel(self, job: Job, files: JobFiles) -> None:  # noqa: D102
        if not _runs_here(job):
            raise UserError(f"{job.id} runs on {printable(job.handle['host'])}: cancel it there.")
        # The runner passes the signal on.
        for pid in _alive(job, files.read_events())[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _runs_here(job: Job) -> bool:
    return job.handle["host"] == socket.gethostname()


def _alive(job: Job, events: list[Event]) -> list[int]:
    """Return which of a job's processes are alive: its runner, and that of its command, which may outlive it."""
    runner = f"{job.handle['pid']}:{job.handle['started']}"
    words = [runner, *(event.value for event in events if event.what == RUNS)]
    return [pid_of(word) for word in words if is_alive(word)]
