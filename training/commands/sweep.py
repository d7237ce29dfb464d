"""`phf sweep`: train, evaluate and compare objectives x seeds x settings on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scorers.amounts import format_count
from scorers.console import print_json, set_up_logs
from scorers.errors import IncompleteError, StoppedError
from scorers.flags import Sets, given_settings
from scorers.rehearsal import ChecksPassed, current_rehearsal

if TYPE_CHECKING:
    from training.sweep.config import SweepConfig, SweepRun
    from training.sweep.sweep import Sweep, SweepReport


def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="YAML that describes the runs.")],
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", min=1, metavar="N", help="Runs at once; by default as many as fit."),
        Sets("at_once"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any key of the file, such as seeds=[1,2] or settings.training.seed=1."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the settings, print the runs and their commands, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs and their states as JSON.")] = False,
) -> None:
    """Train, evaluate and compare objectives x seeds x settings, several at once, on this machine.

    Each run is an ordinary `phf train` in its own folder of the sweep, with a log in logs/; then follow `phf evaluate`
    and a page, comparison/index.html. All runs are checked before the first one starts. The same command continues:
    finished runs are kept, interrupted ones resume, failed ones are tried again. A run that fails does not stop the
    others; the exit status is then 4. SIGTERM and Ctrl-C let the runs save, and exit with status 75.
    `phf config sweep` shows the keys of the file.

    Example: phf sweep sweep.yaml --set seeds=[1,2,3] --dry-run
    """
    flags = given_settings(sweep, locals())
    set_up_logs()
    from scorers.settings import load_settings
    from training.commands.train_start import print_line
    from training.sweep.config import SweepConfig, expand
    from training.sweep.sweep import plan_sweep, run_sweep

    settings = load_settings(SweepConfig, file=spec, flags=flags, overrides=overrides or [])
    if (rehearsal := current_rehearsal()) and not rehearsal.files:
        # Folders and devices are those of other machines.
        raise _checks_passed(settings, expand(settings))
    planned = plan_sweep(settings)
    if dry_run:
        _print_plan(planned, as_json=as_json)
        return
    if rehearsal:
        raise _checks_passed(settings, planned.runs)
    report = run_sweep(planned, print_line)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print_report(report)
    if report.stopped:
        left = f"{format_count(len(report.unfinished), 'run')} of {len(report.runs):,} to finish"
        raise StoppedError(f"{left if report.unfinished else 'only the page is missing'}. The same command continues.")
    if report.unfinished or report.page_reason:
        raise IncompleteError(_failures(report, planned))


def _checks_passed(settings: "SweepConfig", runs: "Sequence[SweepRun]") -> ChecksPassed:
    return ChecksPassed(str(settings.folder.absolute()), [(run.name, run.train) for run in runs])


def _print_plan(planned: "Sweep", *, as_json: bool) -> None:
    from scorers.shell import phf
    from scorers.terminal import Terminal
    from training.sweep.check import describe_state

    if as_json:
        print_json(
            {
                "at_once": len(planned.slots),
                "runs": [
                    {
                        "name": run.name,
                        "state": describe_state(run),
                        "values": dict(run.values),
                        "commands": [["phf", *words] for words in run.commands],
                    }
                    for run in planned.runs
                ],
            }
        )
        return
    console = Terminal(soft_wrap=True)
    for run in planned.runs:
        console.print(f"# {run.name}: {describe_state(run)}")
        for words in run.commands:
            console.print(phf(*words))
    threads = planned.slots[0]["OMP_NUM_THREADS"]
    console.print(
        f"# {format_count(len(planned.runs), 'run')}, {len(planned.slots):,} at once, "
        f"each on {format_count(int(threads), 'thread')}"
    )


def _print_report(report: "SweepReport") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from scorers.terminal import Terminal

    console = Terminal()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("run", "state", "steps"):
        table.add_column(title, justify="right" if title == "steps" else "left", overflow="fold")
    for run in report.runs:
        table.add_row(run.name, run.state, f"{run.step:,} of {run.steps:,}")
    console.print_figures(table)
    if report.page is not None:
        console.print(f"The page: {report.page}", soft_wrap=True)


def _failures(report: "SweepReport", planned: "Sweep") -> str:
    from training.sweep.sweep import COMPARISON

    lines = [f"  {run.name} {run.state}{run.reason and f': {run.reason}'}. Log: {run.log}" for run in report.unfinished]
    if report.page_reason:
        lines.append(f"  the page: {report.page_reason}. Log: {planned.log(COMPARISON)}")
    count = format_count(len(report.unfinished), "run")
    shown = "\n".join(lines)
    return (
        f"{count} of {len(report.runs):,} did not finish, and the rest did:\n{shown}\n"
        "The same command continues them, once the causes are mended."
    )
