"""How a job on Slurm is going: from squeue, from sacct where accounts are kept, and from what the job itself wrote."""

from collections.abc import Mapping
from dataclasses import dataclass

from infra.slurm import client
from infra.submission.job import AGAIN, Job, Kind, State, Status, ended
from infra.submission.store import Event, JobFiles
from scorers.errors import UserError

_FAILED = {
    "TIMEOUT": (State.FAILED, f"it did not stop before its time limit; {AGAIN}, perhaps with a longer --stop-before"),
    "NODE_FAIL": (State.LOST, f"its node failed; {AGAIN}"),
    "BOOT_FAIL": (State.LOST, f"its node failed; {AGAIN}"),
    "OUT_OF_MEMORY": (State.FAILED, "out of memory: submit it again with more --memory"),
    "PREEMPTED": (State.STOPPED, f"preempted; {AGAIN}"),
    "DEADLINE": (State.FAILED, f"its deadline has passed; {AGAIN}"),
}


# Reasons of https://slurm.schedmd.com/job_reason_codes.html that do not explain themselves.
_NEVER = "it will not start: cancel it, and ask for fewer --nodes or --cpus, less --time, or another --partition"
_WAITS = {
    "BadConstraints": _NEVER,
    "PartitionConfig": _NEVER,
    "PartitionNodeLimit": _NEVER,
    "PartitionTimeLimit": _NEVER,
    "Priority": "others come first",
    "ReqNodeNotAvail": "its nodes are down, drained or reserved",
    "Resources": "it waits for free nodes",
}


@dataclass(frozen=True)
class _Line:
    """What Slurm says of a job or a task of an array: its state, such as RUNNING, a reason, and the exit status."""

    state: str
    reason: str = ""
    exit_status: int | None = None


def read_status(job: Job, files: JobFiles) -> Status:
    """Return the status of a job; that of a sweep is made of its runs' and of the job after them.

    Raises:
        UserError: Slurm does not answer.
    """
    events = files.read_events()
    lines = _ask(job)
    if job.kind is not Kind.SWEEP:
        return _status(lines.get((job.handle["job"], "-")), events, "-")
    runs = {
        task.name: _status(lines.get((job.handle["job"], str(number))), events, str(number))
        for number, task in enumerate(job.tasks)
    }
    last = _status(lines.get((job.handle["comparison"], "-")), events, "-")
    alive = [each for each in runs.values() if each.state.is_alive]
    if not alive:
        return Status(last.state, last.reason, last.exit_status, runs)
    done = f"{len(runs) - len(alive)} of {len(runs)} runs have ended"
    return Status(min((each.state for each in alive), key=_MOST_ALIVE.index), done, None, runs)


_MOST_ALIVE = [State.RUNNING, State.REQUEUED, State.QUEUED]


def _status(line: _Line | None, events: list[Event], task: str) -> Status:
    own = [event for event in events if event.task == task]
    cancelled = any(event.what == "cancelled" for event in events)
    started = any(event.what == "started" for event in own)
    written = own[-1] if own and own[-1].what == "ended" else None
    if line is None:
        # Slurm has forgotten it.
        if written is None:
            return Status(State.CANCELLED if cancelled else State.LOST, f"Slurm no longer knows it; {AGAIN}")
        line = _Line("COMPLETED" if written.value == "0" else "FAILED")
    if line.state == "PENDING":
        return Status(State.REQUEUED if started else State.QUEUED, _plain(line.reason))
    if line.state == "COMPLETED":
        return Status(State.FINISHED, exit_status=0)
    if line.state.startswith("CANCELLED") or (cancelled and line.state == "FAILED"):
        return Status(State.CANCELLED, AGAIN, None if written is None else int(written.value))
    if line.state in _FAILED:
        return Status(*_FAILED[line.state])
    if line.state == "FAILED":
        if written is not None:
            return ended(int(written.value))
        return Status(State.FAILED, f"its script did not start, or was killed: {_plain(line.reason)}", line.exit_status)
    if line.state.startswith("REQUEUE") or line.state == "SPECIAL_EXIT":
        return Status(State.REQUEUED)
    return Status(State.RUNNING, "stopping" if cancelled else "" if line.state == "RUNNING" else line.state.lower())


def _plain(reason: str) -> str:
    meaning = _WAITS.get(reason)
    return "" if reason == "None" else reason if meaning is None else f"{reason}: {meaning}"


def _ask(job: Job) -> Mapping[tuple[str, str], _Line]:
    """Return what Slurm says, by number and task (`-` for none)."""
    numbers = ",".join(job.handle.values())
    words = ("squeue", "--noheader", "--array", "--states=all", f"--jobs={numbers}", "--format=%F|%K|%T|%r")
    try:
        text = client.run(*words)
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
        text = ""
    found = {}
    for number, task, state, reason in (line.split("|", 3) for line in text.splitlines()):
        found[number, "-" if task == "N/A" else task] = _Line(state, reason)
    return found or _ask_accounts(numbers)


def _ask_accounts(numbers: str) -> Mapping[tuple[str, str], _Line]:
    try:
        text = client.run(
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={numbers}", "--format=JobID,State,ExitCode"
        )
    except UserError:
        # Accounts are not kept.
        return {}
    found = {}
    for job, state, code in (line.split("|", 2) for line in text.splitlines()):
        number, _, task = job.partition("_")
        found[number, task or "-"] = _Line(state, exit_status=int(code.partition(":")[0]))
    return found
