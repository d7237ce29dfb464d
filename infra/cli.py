"""The Typer app of `phf submit` and `phf jobs`."""

import re
from collections.abc import Callable
from inspect import signature
from typing import Annotated

import typer

from infra.places import PLACES
from infra.submission.command import submit_command
from infra.submission.job import Kind
from infra.submission.place import place_of
from scorers.console import command
from scorers.errors import UserError
from scorers.printing import printable

PANEL = "Elsewhere"
# The place decides where ranks start; `submit` has a dry run of its own.
_MEANINGLESS = ("on", "dry_run")


def make_app(label: Callable[..., None], train: Callable[..., None], sweep: Callable[..., None]) -> typer.Typer:
    """Return the app of the commands that submit these three, and of `phf jobs`."""
    submit = typer.Typer(
        no_args_is_help=True, help="Submit a job: detached on this machine, or on a cluster. Its options are its own."
    )
    for kind, job in {Kind.LABEL: label, Kind.TRAIN: train, Kind.SWEEP: sweep}.items():
        text = (
            f"Submit `phf {kind}`, with the same arguments and options. They are checked before anything is submitted."
            "\n\nPrints the id of the job, which follows from its output: submitted again once it has ended, it "
            "continues where it stopped. `phf jobs` lists jobs, follows and cancels them."
        )
        # A plan starts nothing.
        without = [name for name in signature(job).parameters if name in _MEANINGLESS or re.match(r"plan(_|$)", name)]
        submit.command(str(kind), help=text)(command(submit_command(kind, job, PLACES, without)))
    app = typer.Typer()
    app.add_typer(submit, name="submit", rich_help_panel=PANEL)
    app.command(rich_help_panel=PANEL)(command(jobs))
    return app


def jobs(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="A job; without it, all are listed.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print its log until it has ended.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Ask it to stop; it saves its work first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the job, or all of them, as JSON.")] = False,
) -> None:
    """List the jobs that were submitted, show or follow one, or cancel it.

    With --follow the exit status is that of the job; Ctrl-C ends only the following.

    Example: phf jobs label-1c9b8a2f --follow
    """
    from infra.submission import jobs as of_jobs
    from infra.submission.store import Store

    store = Store()
    if job_id is None:
        if follow or cancel:
            raise UserError("--follow and --cancel need the ID of a job; `phf jobs` lists them.")
        of_jobs.show_jobs(store, PLACES, as_json=as_json)
        return
    if follow and cancel:
        raise UserError("Give --follow or --cancel, not both.")
    job = store.find(job_id)
    if job is None:
        raise UserError(f"There is no job {printable(job_id)}; `phf jobs` lists them.")
    place, files = place_of(job, PLACES), store.files(job.id)
    if cancel:
        of_jobs.cancel(job, place, files)
    elif follow:
        of_jobs.follow(job, place, files)
    else:
        of_jobs.show_job(job, place, files, as_json=as_json)
