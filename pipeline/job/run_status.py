"""The format of `job/progress.json`: the figures of a running job, for `phf status`."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.storage.base import Storage
from scorers.stored import check_numbers

WorkerState = Literal["starting", "idle", "working"]

WORKER_STATES: tuple[WorkerState, ...] = ("starting", "idle", "working")


class RecentFailure(BaseModel):
    """A unit that raised or was given up, or a lost worker; `error` contains no text of the corpus.

    `unit` is the unit concerned, and `attempt` its number of attempts so far, if known.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    at: AwareDatetime
    group: str
    error: str
    unit: str | None = None
    attempt: int | None = None


PROGRESS = "job/progress.json"

# A driver writes its figures every five seconds; one that has been silent for longer than this is considered dead.
_SILENT_S = 30.0

State = Literal["starting", "labelling", "sealing", "stopped", "incomplete", "done"]


class RunStatus(BaseModel):
    """The content of `job/progress.json`: the figures of `Progress`, and which process wrote them and when.

    Attributes:
        run: name of the run, as in its log and metrics.
        workers: by group and state.
        backlog: by group, units that no worker of the group has had.
        records_per_s, remaining_s: at the recent pace.
        failed: names of the first units that were given up; `given_up` counts all.
        failed_attempts: by group.
        failures: the most recent ones.
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

    @property
    def silent_s(self) -> float:
        """Seconds since the figures were written, by the clocks of that machine and this one; 0 for the future."""
        return max(0.0, (datetime.now(UTC) - self.written).total_seconds())

    @property
    def is_running(self) -> bool:
        """Whether the driver has not ended its run, and has written lately."""
        return self.state in {"starting", "labelling", "sealing"} and self.silent_s < _SILENT_S


def running_driver(storage: Storage) -> RunStatus | None:
    """The figures of the driver that is running; None if there is none."""
    run = read_status(storage)
    return run if run is not None and run.is_running else None


def read_status(storage: Storage) -> RunStatus | None:
    """Read the figures of the latest run; None if there are none or they cannot be read. They may be stale or wrong."""
    try:
        status = RunStatus.model_validate_json(storage.read(PROGRESS))
        check_numbers(status.model_dump())
        return status
    except (FileNotFoundError, ValueError):
        return None
