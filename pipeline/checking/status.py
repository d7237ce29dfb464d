"""How far a labelling job is, from its output folder alone: commit records prove, the last run's figures inform."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from pipeline.dataset.manifest import MANIFEST_NAME
from pipeline.labelling.job import load_job
from pipeline.labelling.progress import RunStatus, read_status
from pipeline.labelling.reporter import count_of, duration, rate_of
from pipeline.storage import Storage
from pipeline.units.store import UnitStore
from scorers.errors import UserError

# A driver writes its figures every five seconds; one that has been silent for longer than this is not running any more.
_SILENT_S = 30.0


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
        silent_s: seconds since that run wrote them.
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


def job_status(storage: Storage) -> JobStatus:
    """Read where a job stands. It may be running.

    Raises:
        UserError: there is no job, or its folder cannot be read.
    """
    try:
        plan = load_job(storage).plan
        run = read_status(storage)
        sealed = storage.exists(MANIFEST_NAME)
        totals, quarantined = UnitStore(storage).totals(len(plan.units))
    except OSError as error:
        raise UserError(f"Cannot read {storage.uri}: {error.strerror or error}.") from None
    silent_s = None if run is None else (datetime.now(UTC) - run.written).total_seconds()
    working = run is not None and run.state in {"labelling", "sealing"}
    running = working and silent_s is not None and silent_s < _SILENT_S
    return JobStatus(
        output=storage.uri,
        state="sealed" if sealed else "running" if running else "stopped",
        units=len(plan.units),
        committed=totals["units"],
        records=totals["records"],
        sentences=totals["sentences"],
        empty=totals["empty"],
        quarantined=quarantined,
        sources_cut=len(plan.cut),
        run=run,
        silent_s=silent_s,
    )


def show_status(status: JobStatus, console: Console) -> None:
    """Print where a job stands for a person."""
    console.print(f"{status.output}: {_headline(status)}\n", soft_wrap=True)
    facts = Table.grid(padding=(0, 2))
    share = f" ({status.committed / status.units:.0%})" if status.units else ""
    facts.add_row("units", f"{status.committed:,} of {status.units:,} committed{share}")
    facts.add_row("records", f"{status.records:,}" + (f", {status.empty:,} of them empty" if status.empty else ""))
    facts.add_row("sentences", f"{status.sentences:,}")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in status.quarantined.items())
    quarantined = sum(status.quarantined.values())
    facts.add_row("quarantined", f"{quarantined:,}" + (f" ({reasons})" if reasons else ""))
    if status.sources_cut:
        facts.add_row("cut inputs", f"{status.sources_cut:,} end early")
    if status.run is not None:
        _add_run(facts, status.run, running=status.state == "running")
    console.print(facts)


def _headline(status: JobStatus) -> str:
    if status.state == "sealed":
        return "labelled and sealed."
    if status.state == "running" and status.run is not None:
        return f"{status.run.state} on {status.run.host}, process {status.run.pid}."
    silent = "" if status.silent_s is None else f" Its last run was heard of {duration(status.silent_s)} ago."
    return f"not running.{silent} The same `phf label` command goes on."


def _add_run(facts: Table, run: RunStatus, *, running: bool) -> None:
    what = "this run" if running else "last run"
    facts.add_row(
        what,
        f"{rate_of(run.records, run.elapsed_s, 'records')} with {count_of(run.workers, 'worker')}, "
        f"{duration(run.elapsed_s)}",
    )
    if running and run.remaining_s is not None:
        facts.add_row("left", duration(run.remaining_s))
    if run.seconds:
        slowest, seconds = max(run.seconds.items(), key=lambda each: each[1])
        facts.add_row("slowest", f"{slowest}, {seconds / sum(run.seconds.values()):.0%} of the workers' time")
    if run.failed:
        facts.add_row("given up", ", ".join(run.failed[:10]))
