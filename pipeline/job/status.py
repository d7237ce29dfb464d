"""The figures of a running job as `job/progress.json` holds them, for `phf status`."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.storage.base import Storage
from scorers.stored import check_numbers

WorkerState = Literal["starting", "idle", "working"]

WORKER_STATES: tuple[WorkerState, ...] = ("starting", "idle", "working")


class RecentFailure(BaseModel):
    """A unit that raised or was given up, or a worker that was lost; `error` holds no text of the corpus.

    `unit` is the one it happened over, and `attempt` how often that was tried then, where this is known.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    at: AwareDatetime
    group: str
    error: str
    unit: str | None = None
    attempt: int | None = None


PROGRESS = "job/progress.json"

State = Literal["starting", "labelling", "sealing", "stopped", "incomplete", "done"]


class RunStatus(BaseModel):
    """What `job/progress.json` holds: the figures of `Progress`, and who wrote them when.

    Attributes:
        run: names the run, as in its log and its metrics.
        workers: by group and by what they do.
        backlog: units by group that no worker of it has had.
        records_per_s, remaining_s: at the recent pace.
        failed: names of the first units that were given up, `given_up` of all.
        failed_attempts: by group.
        failures: the last few.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: State
    run: str
    epoch: int
    host: str
    pid: int
    written: AwareDatetime
    units: int
    committed: int
    committed_before: int
    open_units: int
    workers: dict[str, dict[WorkerState, int]]
    backlog: dict[str, int]
    records: int
    sentences: int
    quarantined: dict[str, int]
    elapsed_s: float
    records_per_s: float
    remaining_s: float | None
    seconds: dict[str, float]
    given_up: int
    failed: list[str]
    failed_attempts: dict[str, int]
    failures: list[RecentFailure] = Field(default_factory=list)


def read_status(storage: Storage) -> RunStatus | None:
    """The figures of the latest run, or None if there are none that can be read; they prove nothing."""
    try:
        status = RunStatus.model_validate_json(storage.read(PROGRESS))
        check_numbers(status.model_dump())
        return status
    except (FileNotFoundError, ValueError):
        return None
