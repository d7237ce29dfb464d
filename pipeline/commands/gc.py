"""`phf gc`: remove files that a labelling job no longer needs."""

from typing import Annotated

import typer

from pipeline.options import AsJson
from scorers.console import print_json


def gc(
    output: Annotated[str, typer.Argument(metavar="DIR", help="The --output of a `phf label` run: a folder or a URI.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove the listed files.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the files that a labelling job no longer needs, with their sizes; --delete removes them.

    These are files staged by dead runs, parts that no commit record names, older generations, and partial files.

    Committed data is never removed, and a running `phf label` is not disturbed.

    Example: phf gc labelled --delete
    """
    from pipeline.commands.gc_view import show_collected
    from pipeline.upkeep.gc import collect
    from scorers.terminal import Terminal

    collected = collect(output, delete=delete)
    if as_json:
        print_json(collected.to_dict())
    else:
        show_collected(Terminal(soft_wrap=True), collected)
