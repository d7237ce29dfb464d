"""How far a labelling job is, from its output folder alone: commit records prove, the last run's figures inform."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.dataset.manifest import MANIFEST_NAME
from pipeline.labelling.job import load_job
from pipeline.labelling.telling.run_status import RunStatus, read_status
from pipeline.storage import Storage
from pipeline.units.store import UnitStore
from scorers.errors import UserError

# A driver writes its figures every five seconds; one that has been silent for longer than this is not running any more.
_SILENT_S = 30.0
# While a job is watched, the commit records are read again after so many times as long as reading them took.
_RELUCTANCE = 20.0


class JobStatus(BaseModel):
    """Where a job stands.

    Attributes:
        output: where it is.
        state: `running` if its driver wrote figures lately, `sealed` once the dataset is finished, else `stopped`.
        units, committed: of the job.
        records, sentences, empty: of the committed units.
        quarantined: records of the committed units by reason.
        sources_cut: inputs whose rest could not be read.
        run: figures of the latest run, which prove nothing; None if there are none.
        silent_s: seconds since that run wrote them, by the clocks of its machine and this one.
    """

    model_config = ConfigDict(frozen=True)

    output: str
    state: Literal["running", "stopped", "sealed"]
    units: int
    committed: int
    records: int
    sentences: int
    empty: int
    quarantined: dict[str, int]
    sources_cut: int
    run: RunStatus | None
    silent_s: float | None


@dataclass(frozen=True)
class _Totals:
    """What the commit records of a job add up to."""

    committed: int
    records: int
    sentences: int
    empty: int
    quarantined: dict[str, int]


def job_status(storage: Storage) -> JobStatus:
    """Read where a job stands. It may be running.

    Raises:
        UserError: there is no job, or its folder cannot be read.
    """
    return next(watch_status(storage))


def watch_status(storage: Storage, clock: Callable[[], float] = time.monotonic) -> Iterator[JobStatus]:
    """Where a job stands, read anew for each item; the commit records, of which there may be many, less often.

    Raises:
        UserError: there is no job, or its folder cannot be read.
    """
    try:
        plan = load_job(storage).plan
        units, cut = len(plan.units), len(plan.cut)
        read_at = due = float("-inf")
        totals = _Totals(0, 0, 0, 0, {})
        was_working = True
        while True:
            run = read_status(storage)
            working = _is_working(run)
            # When a run ends, what it leaves behind is read once more.
            if clock() >= due or working != was_working:
                read_at = clock()
                totals = _totals(storage, units)
                due = clock() + _RELUCTANCE * (clock() - read_at)
            was_working = working
            yield _status(storage, units, cut, totals, run, working=working)
    except OSError as error:
        raise UserError(f"Cannot read {storage.uri}: {error.strerror or error}.") from None


def _totals(storage: Storage, units: int) -> _Totals:
    totals, quarantined = UnitStore(storage).totals(units)
    return _Totals(
        committed=totals["units"],
        records=totals["records"],
        sentences=totals["sentences"],
        empty=totals["empty"],
        quarantined=quarantined,
    )


def _is_working(run: RunStatus | None) -> bool:
    if run is None or run.state not in {"starting", "labelling", "sealing"}:
        return False
    return _seconds_since(run.written) < _SILENT_S


def _status(
    storage: Storage, units: int, cut: int, totals: _Totals, run: RunStatus | None, *, working: bool
) -> JobStatus:
    committed = max(totals.committed, run.committed) if run is not None and working else totals.committed
    sealed = not working and committed >= units and storage.exists(MANIFEST_NAME)
    return JobStatus(
        output=storage.uri,
        state="running" if working else "sealed" if sealed else "stopped",
        units=units,
        committed=committed,
        records=totals.records,
        sentences=totals.sentences,
        empty=totals.empty,
        quarantined=totals.quarantined,
        sources_cut=cut,
        run=run,
        silent_s=None if run is None else _seconds_since(run.written),
    )


def _seconds_since(moment: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())
