"""`phf status`."""

from typing import Annotated

import typer

from pipeline.options import AsJson


def status(
    output: Annotated[
        str, typer.Argument(metavar="DIR", help="The --output of a `phf label` run.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Show how far a labelling job is, whether it runs or not.

    Example: phf status labelled
    """
    from rich.console import Console

    from pipeline.checking.status import job_status, show_status
    from pipeline.storage import Storage
    from scorers.console import print_json

    found = job_status(Storage.open(output))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        show_status(found, Console(highlight=False))
