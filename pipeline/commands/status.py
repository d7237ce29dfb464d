"""`phf status`: show the progress of a labelling job."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.options import AsJson
from scorers.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.storage.base import Storage

# Seconds between two updates with --watch.
_INTERVAL_S = 2.0


def status(
    output: Annotated[
        str, typer.Argument(metavar="DIR", help="The --output of a `phf label` run.", show_default=False)
    ],
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Update the display until the job is done or stopped, or Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a labelling job, running or not.

    Example: phf status labelled --watch
    """
    if watch and as_json:
        raise UserError("Give --watch or --json, not both.")
    from pipeline.checking.status import job_status
    from pipeline.commands.status_view import status_view
    from pipeline.storage.open import open_storage
    from scorers.console import print_json
    from scorers.terminal import Terminal

    storage, console = open_storage(output), Terminal()
    if watch:
        _watch(storage, console)
    elif as_json:
        print_json(job_status(storage).model_dump(mode="json"))
    else:
        console.print(status_view(job_status(storage)), soft_wrap=True)


def _watch(storage: "Storage", console: "Console") -> None:
    from rich.live import Live

    from pipeline.checking.status import watch_status
    from pipeline.commands.status_view import status_view

    looks = watch_status(storage)
    with Live(status_view(found := next(looks)), console=console, auto_refresh=False) as live:
        try:
            while found.state == "running":
                time.sleep(_INTERVAL_S)
                found = next(looks)
                live.update(status_view(found), refresh=True)
        except KeyboardInterrupt:
            return
