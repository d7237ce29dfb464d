"""`phf jobs`: list the submitted jobs, show and follow one, or cancel it."""

import os
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import typer

from infra.submission.job import Job, State, Status
from infra.submission.place import NoAnswerError, Place, place_of
from infra.submission.store import JobFiles, Store
from scorers.console import print_json
from scorers.errors import EXIT_INCOMPLETE, EXIT_STOPPED, UserError
from scorers.printing import message
from scorers.shell import phf

_LAST_LINES = 10
# Columns of a table that no terminal shows.
_WIDE = 1_000
# Seconds between two looks at a job that is followed: longer and longer while nothing is new.
_FIRST_S, _LONGEST_S = 0.5, 5.0


def show_jobs(store: Store, places: Mapping[str, Place], *, as_json: bool) -> None:
    """Print all jobs, the newest first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from scorers.terminal import Terminal

    jobs, damaged = store.jobs()
    for error in damaged:
        sys.stderr.write(message(f"{error}\n"))
    silent: dict[str, str] = {}
    found = [(job, _status_or_problem(places, job, store.files(job.id), silent)) for job in jobs]
    if as_json:
        print_json([_facts(job, status) for job, status in found])
        return
    if not found:
        sys.stderr.write("No job was submitted by this user. See `phf submit --help`.\n")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("job", "on", "state", "submitted", "output"):
        table.add_column(title, overflow="fold")
    for job, status in found:
        state = status if isinstance(status, str) else status.state
        if isinstance(status, Status) and status.state is State.QUEUED and status.reason:
            state = f"{state}: {status.reason}"
        table.add_row(job.id, job.place, state, _when(job.submitted_at), message(job.output))
    # Lines of a pipe are as long as they must be: programs and people search them.
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    Terminal(width=wide).print(table)


def show_job(job: Job, place: Place, files: JobFiles, *, as_json: bool) -> None:
    """Print a job, and the last lines of its log. Where its place does not answer, its record is shown all the same."""
    status = _status_or_problem({place.name: place}, job, files, {})
    if as_json:
        print_json(_facts(job, status))
        return
    known = status if isinstance(status, Status) else None
    lines = {
        "job": job.id,
        "state": str(status) if known is None else str(known.state) + (f" ({known.reason})" if known.reason else ""),
        "on": " ".join([job.place, *(f"{name} {value}" for name, value in job.handle.items() if name != "started")]),
        "submitted": _when(job.submitted_at),
        "folder": job.folder,
        "command": phf(*job.words),
        "output": job.output,
    }
    if files.log.exists():
        lines["log"] = str(files.log)
    for name, value in lines.items():
        _print(f"{name + ':':11}{value}\n")
    for name, each in ((known and known.tasks) or {}).items():
        _print(f"  {name}: {each.state}{each.reason and f' ({each.reason})'}\n")
    # A place that does not answer has no log either, unless it is a file here.
    last = files.read_last_lines(_LAST_LINES) if known is None else place.read_last_lines(job, files, _LAST_LINES)
    if last:
        _print("\n" + "".join(f"  {line}\n" for line in last))


def follow(job: Job, place: Place, files: JobFiles) -> None:
    """Print a job's log as it grows, until the job has ended.

    Raises:
        typer.Exit: with the exit status of the job; if it ended without one, 75 where it was cancelled, else 4; 130
            after Ctrl-C.
    """
    try:
        status = _follow(job, place, files)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"{job.id} runs on. Follow it with: phf jobs {job.id} --follow; "
            f"cancel it with: phf jobs {job.id} --cancel\n"
        )
        raise typer.Exit(130) from None
    without = EXIT_STOPPED if status.state is State.CANCELLED else EXIT_INCOMPLETE
    raise typer.Exit(without if status.exit_status is None else status.exit_status)


def _follow(job: Job, place: Place, files: JobFiles) -> Status:
    log, shown, partial, pause = place.open_log(job, files), "", b"", _FIRST_S
    while True:
        # Before the log: all that the job printed is there once it has ended.
        status = place.status(job, files)
        pause = min(1.5 * pause, _LONGEST_S)
        while piece := log.read(ended=not status.state.is_alive):
            pause = _FIRST_S
            *whole, partial = (partial + piece).split(b"\n")
            for line in whole:
                _print(line.decode(errors="replace") + "\n")
        now = f"{job.id} is {status.state}{status.reason and f': {status.reason}'}."
        if now != shown:
            sys.stderr.write(message(f"{now}\n"))
            shown, pause = now, _FIRST_S
        if not status.state.is_alive:
            break
        time.sleep(pause)
    if partial:
        _print(partial.decode(errors="replace") + "\n")
    return status


def cancel(job: Job, place: Place, files: JobFiles) -> None:
    """Ask a job to stop, and record that.

    Raises:
        UserError: it is not alive, or its place does not answer.
    """
    status = place.status(job, files)
    if not status.state.is_alive:
        raise UserError(f"{job.id} is {status.state}: there is nothing to cancel.")
    files.add_event("cancelled")
    place.cancel(job, files)
    saves = "" if status.state is State.QUEUED else "; it saves its work first"
    sys.stderr.write(f"Asked {job.id} to stop{saves}. See: phf jobs {job.id}\n")


def _status_or_problem(places: Mapping[str, Place], job: Job, files: JobFiles, silent: dict[str, str]) -> Status | str:
    """Return the status of a job, or why it is unknown; `silent` collects what did not answer, to ask it once."""
    service = f"{job.place} {job.handle.get('api', '')}"
    if service in silent:
        return silent[service]
    try:
        return place_of(job, places).status(job, files)
    except NoAnswerError as error:
        silent[service] = f"unknown: {error}"
        return silent[service]
    except UserError as error:
        return f"unknown: {error}"


def _facts(job: Job, status: Status | str) -> dict[str, Any]:
    known = status if isinstance(status, Status) else None
    return {
        **job.model_dump(mode="json", exclude={"tasks"}),
        "state": "unknown" if known is None else known.state,
        "reason": status if known is None else known.reason,
        "exit_status": None if known is None else known.exit_status,
        "tasks": {name: each.state for name, each in ((known and known.tasks) or {}).items()},
    }


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print(text: str) -> None:
    sys.stdout.write(message(text))
    sys.stdout.flush()
