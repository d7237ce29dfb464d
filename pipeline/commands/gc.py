"""`phf gc`: remove what a labelling job has left behind."""

from typing import Annotated

import typer

from pipeline.options import AsJson
from scorers.console import print_json


def gc(
    output: Annotated[str, typer.Argument(metavar="DIR", help="The --output of a `phf label` run: a folder or a URI.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what a labelling job has left behind and nobody needs any more, with sizes; --delete removes it.

    That is what dead runs had staged, parts that no commit record names, older generations, and half-written files.

    Nothing that is committed is ever removed, and a running `phf label` is not disturbed.

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
