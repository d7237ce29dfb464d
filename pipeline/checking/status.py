"""Report the progress of a labelling job from its output folder: commit records, and the figures of the last run."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.corpus.plan import Plan
from pipeline.job.record import load_job
from pipeline.job.run_status import RunStatus, read_status
from pipeline.job.unit_store import UnitStore
from pipeline.sealing.extent import Extent, extent_of
from pipeline.storage.base import Storage
from scorers.errors import UserError

# While watching, wait this many times the duration of the last read before reading the commit records again.
_RELUCTANCE = 20.0
# Number of incompletely read inputs that a status lists.
_MOST_CUT = 20


class ColumnStatus(BaseModel):
    """The number of units with scores in the columns that one command fills."""

    model_config = ConfigDict(frozen=True)

    columns: list[str]
    committed: int


class StepStatus(BaseModel):
    """A step that was begun and is not finished; `command`, with its original arguments, resumes it."""

    model_config = ConfigDict(frozen=True)

    command: str
    what: str
    columns: list[str]
    units: int
    committed: int


class CutSource(BaseModel):
    """An input that was not read completely: the reason, the records read, its bytes, and the unread bytes."""

    model_config = ConfigDict(frozen=True)

    source: str
    reason: str
    detail: str
    records: int
    size: int
    unread: int


class JobStatus(BaseModel):
    """The status of a job.

    Attributes:
        output: the output of the job.
        state: `running` if its driver wrote figures lately, `sealed` once every step is sealed, else `stopped`.
        units, committed: units of the first unfinished step, or of the whole job; committed in all its columns.
        records, sentences, empty: totals of the committed units.
        quarantined: records of the committed units by reason.
        sources_cut: number of inputs that could not be read to the end.
        cut: the first of these inputs.
        run: figures of the latest run, for information only; None if there are none.
        silent_s: seconds since that run wrote them, by the clocks of its machine and this one.
        generation: the generation of the sealed dataset; None before the first.
        columns: committed units by layer.
        unfinished: the unfinished steps, in the order to resume them.
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
    generation: int | None = None
    columns: list[ColumnStatus] = []
    cut: list[CutSource] = []
    unfinished: list[StepStatus] = []


@dataclass(frozen=True)
class _Totals:
    """Totals of the commit records of the first layer, which holds the rows; and the inputs that end early."""

    records: int
    sentences: int
    empty: int
    quarantined: dict[str, int]
    sources_cut: int
    cut: list[CutSource]


def job_status(storage: Storage) -> JobStatus:
    """Read the status of a job, which may be running.

    Raises:
        UserError: there is no job, or its folder cannot be read.
    """
    return next(watch_status(storage))


def watch_status(storage: Storage, clock: Callable[[], float] = time.monotonic) -> Iterator[JobStatus]:
    """Yield the current status of a job, again and again; the commit records, which may be many, are read less often.

    Raises:
        UserError: there is no job, or its folder cannot be read.
    """
    try:
        read_at = due = float("-inf")
        was_working = True
        while True:
            run = read_status(storage)
            working = run is not None and run.is_running
            # When a run ends, read its final state at once.
            if clock() >= due or working != was_working:
                read_at = clock()
                job = load_job(storage)
                extent = extent_of(job)
                totals = _totals(storage, extent.units, job.plan)
                due = clock() + _RELUCTANCE * (clock() - read_at)
            was_working = working
            yield _status(storage, extent, totals, run, working=working)
    except OSError as error:
        raise UserError(f"Cannot read {storage.uri}: {error.strerror or error}.") from None


def _totals(storage: Storage, units: int, plan: Plan) -> _Totals:
    entries = {entry.uri: entry for entry in plan.entries} if plan.cut else {}
    totals, quarantined = UnitStore(storage).totals(units)
    return _Totals(
        records=totals["records"],
        sentences=totals["sentences"],
        empty=totals["empty"],
        quarantined=quarantined,
        sources_cut=len(plan.cut),
        cut=[
            CutSource(
                source=each.source,
                reason=each.reason,
                detail=each.detail,
                records=entries[each.source].records,
                size=entries[each.source].size,
                unread=entries[each.source].unread,
            )
            for each in plan.cut[:_MOST_CUT]
        ],
    )


def _status(storage: Storage, extent: Extent, totals: _Totals, run: RunStatus | None, *, working: bool) -> JobStatus:
    committed = {layer.number: layer.committed for layer in extent.layers}
    step = next(iter(extent.unfinished), None)
    if step is not None and run is not None and working:
        # A run fills one layer after another; its own figure is more recent than the records.
        for layer in step.layers:
            if layer.committed < extent.units:
                committed[layer.number] = min(extent.units, max(layer.committed, run.committed))
                break
    of_step = (step.layers if step is not None else ()) or extent.layers
    return JobStatus(
        output=storage.uri,
        state="running" if working else "sealed" if step is None else "stopped",
        units=extent.units,
        committed=min(committed[layer.number] for layer in of_step),
        records=totals.records,
        sentences=totals.sentences,
        empty=totals.empty,
        quarantined=totals.quarantined,
        sources_cut=totals.sources_cut,
        cut=totals.cut,
        run=run,
        silent_s=None if run is None else run.silent_s,
        generation=None if extent.current is None else extent.current.generation,
        columns=[
            ColumnStatus(columns=list(layer.columns), committed=committed[layer.number]) for layer in extent.layers
        ],
        unfinished=[
            StepStatus(
                command=each.command,
                what=each.what,
                columns=[column for layer in each.layers for column in layer.columns],
                units=each.units,
                committed=min((committed[layer.number] for layer in each.layers), default=0),
            )
            for each in extent.unfinished
        ],
    )
