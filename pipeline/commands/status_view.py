"""Print the result of `phf status`."""

from collections.abc import Mapping

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.checking.status import JobStatus, StepStatus
from pipeline.job.run_status import RunStatus, WorkerState
from pipeline.labelling.monitoring.progress import STEPS
from scorers.amounts import format_count, format_duration, format_mean_rate, format_rate
from scorers.paths import escape_path

# Number of failures to show; the status file has more.
_FAILURES = 5


def status_view(status: JobStatus) -> Group:
    """Build the view, to print once or to update live."""
    facts = Table.grid(padding=(0, 2))
    run = status.run if status.state == "running" else None
    begun = f", {run.open_units:,} begun" if run is not None and run.open_units else ""
    if len(status.columns) < 2:
        _add(facts, "units", _units(status, status.committed) + begun)
    for each in status.columns if len(status.columns) > 1 else ():
        _add(facts, "units", f"{_units(status, each.committed)} of {', '.join(each.columns)}")
    _add(facts, "records", f"{status.records:,}" + (f", {status.empty:,} of them empty" if status.empty else ""))
    _add(facts, "sentences", f"{status.sentences:,}")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in status.quarantined.items())
    quarantined = sum(status.quarantined.values())
    _add(facts, "quarantined", f"{quarantined:,}" + (f" ({reasons})" if reasons else ""))
    if status.sources_cut:
        _add(facts, "cut inputs", f"{status.sources_cut:,} not read whole")
        for cut in status.cut[:_FAILURES]:
            _add(
                facts, "", f"{escape_path(cut.source)}: {cut.detail}; {format_count(cut.records, 'record')} before that"
            )
    if status.run is not None and status.state != "sealed":
        _add_run(facts, status.run, running=run is not None)
    return Group(Text(f"{status.output}: {_headline(status)}\n"), facts)


def _units(status: JobStatus, committed: int) -> str:
    share = f" ({committed / status.units:.0%})" if status.units else ""
    return f"{committed:,} of {status.units:,} committed{share}"


def _add(facts: Table, name: str, value: str) -> None:
    facts.add_row(name, Text(value))  # an error may look like markup


def _headline(status: JobStatus) -> str:
    if status.state == "sealed":
        return "labelled and sealed."
    silent = "" if status.silent_s is None else format_duration(status.silent_s)
    if status.state == "running" and status.run is not None:
        return f"{status.run.state} on {status.run.host}, process {status.run.pid}; last update {silent} ago."
    sealed = "" if status.generation is None else f"sealed as generation {status.generation}; "
    return " ".join(
        [
            f"{sealed}not running.",
            *([f"Last update {silent} ago."] if silent else []),
            *(_unfinished(each, only=status.generation is None) for each in status.unfinished),
        ]
    )


def _unfinished(step: StepStatus, *, only: bool) -> str:
    what = "" if only else f"{step.what} is not done ({step.committed:,} of {format_count(step.units, 'unit')}). "
    return f"{what}The same `{step.command}` command resumes it."


def _add_run(facts: Table, run: RunStatus, *, running: bool) -> None:
    mean = format_mean_rate(run.records, run.elapsed_s, "records")
    if running and run.state == "labelling":
        lately = format_rate(run.records_per_s, "records")
        _add(facts, "this run", f"{lately} lately, {mean} over {format_duration(run.elapsed_s)}")
        if run.remaining_s is not None:
            _add(facts, "left", format_duration(run.remaining_s))
        for group, states in run.workers.items():
            _add(facts, f"workers {group}", _workers(states, run.backlog.get(group, 0)))
    elif not running:
        _add(facts, "last run", f"{mean} over {format_duration(run.elapsed_s)}")
    columns = {name: seconds for name, seconds in run.seconds.items() if name not in STEPS}
    if columns:
        slowest, seconds = max(columns.items(), key=lambda each: each[1])
        _add(facts, "slowest scorer", f"{slowest}, {seconds / sum(run.seconds.values()):.0%} of the workers' time")
    if run.failed_attempts:
        attempts = sum(run.failed_attempts.values())
        _add(facts, "failed", f"{format_count(attempts, 'attempt')}, {format_count(run.given_up, 'unit')} given up")
    for failure in run.failures[-_FAILURES:]:
        unit = "" if failure.unit is None else f"unit {failure.unit}, "
        _add(facts, "", f"{failure.at:%H:%M:%S} UTC, {unit}{failure.group}: {failure.error}")


def _workers(states: Mapping[WorkerState, int], backlog: int) -> str:
    shown = [f"{count:,} {state}" for state, count in reversed(list(states.items())) if count]
    return (", ".join(shown) or "none") + f"; {format_count(backlog, 'unit')} waiting"
