"""A submitted job: what runs where, and how it is going."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from scorers.errors import EXIT_DEFECT, EXIT_INCOMPLETE, EXIT_QUARANTINE, EXIT_STOPPED, EXIT_USAGE

AGAIN = "submit it again to continue"
"""What to do with a job that has ended before its work was done."""
JOB_ID = r"^(?:label|train|sweep)-[0-9a-f]{8}$"


class Kind(StrEnum):
    """The commands of phf that can be submitted."""

    LABEL = "label"
    TRAIN = "train"
    SWEEP = "sweep"


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Stored):
    """One of several commands of a job, such as a run of a sweep; `words` follow `phf`."""

    name: str
    words: tuple[str, ...]


class Job(_Stored):
    """A job, as its record stores it: without environment variables, and without arguments that hold a secret.

    Attributes:
        id: from `job_id`.
        kind: the command.
        words: the command after `phf`, with `kind` first.
        folder: absolute path of the working directory, to which relative paths in `words` refer.
        output: absolute path or URI of what the job writes.
        place: name of the place where it runs.
        tasks: the runs of a sweep.
        submitted_at: Unix time in seconds.
        handle: what the place needs to find the job again, such as its number in Slurm.
    """

    id: Annotated[str, Field(pattern=JOB_ID)]
    kind: Kind
    words: tuple[str, ...]
    folder: str
    output: str
    place: str
    tasks: tuple[Task, ...] = ()
    submitted_at: float = 0.0
    handle: dict[str, str] = Field(default_factory=dict)


def job_id(kind: Kind, output: str) -> str:
    """Return the id of the job that writes an output: the same for each attempt at it, at any place."""
    return f"{kind}-{hashlib.sha256(output.encode(errors='surrogateescape')).hexdigest()[:8]}"


class State(StrEnum):
    """How a job is going. `requeued` waits to continue; `lost` ended without a status, as when its machine died."""

    QUEUED = "queued"
    RUNNING = "running"
    REQUEUED = "requeued"
    FINISHED = "finished"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"
    LOST = "lost"

    @property
    def is_alive(self) -> bool:
        """Whether the job runs, or will run without being submitted again."""
        return self in (State.QUEUED, State.RUNNING, State.REQUEUED)


@dataclass(frozen=True)
class Status:
    """The state of a job now.

    Attributes:
        state: its state.
        reason: why, in a few words; may be empty.
        exit_status: of its command; None while it is alive, or if nobody saw it.
        tasks: by name of a task, its state and reason.
    """

    state: State
    reason: str = ""
    exit_status: int | None = None
    tasks: Mapping[str, "Status"] | None = None


_REASONS = {
    EXIT_USAGE: "refused: see its log",
    EXIT_QUARANTINE: "done, but too many records were quarantined",
    EXIT_INCOMPLETE: f"incomplete: {AGAIN}",
    EXIT_DEFECT: "a defect of phf: see its log",
    EXIT_STOPPED: f"stopped: {AGAIN}",
}


def ended(exit_status: int) -> Status:
    """Return the status of a job whose command ended with an exit status."""
    if exit_status == 0:
        return Status(State.FINISHED, exit_status=0)
    state = State.STOPPED if exit_status == EXIT_STOPPED else State.FAILED
    killed = f"killed by signal {exit_status - 128}" if exit_status > 128 else f"ended with status {exit_status}"
    return Status(state, _REASONS.get(exit_status, f"{killed}: see its log"), exit_status)
