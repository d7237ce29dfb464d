"""The command that shows which scorers there are."""

from typing import Annotated

import typer

from scorers.console import command, print_json

app = typer.Typer()


@app.command(rich_help_panel="Labelling")
@command
def scorers(
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")] = False,
) -> None:
    """Show the kinds of scorers, and whether each can run on this machine as it is.

    A column is scored by a kind: phf label ... --scorer toxicity=linear --scorer pii

    Packages add kinds by an entry point of the group phf.scorers.
    """
    from scorers.listing import facts

    found = facts()
    if as_json:
        print_json(found)
        return

    from rich.console import Console
    from rich.table import Table

    table = Table("Kind", "Default for", "Score of a sentence", "Runs here", show_lines=True)
    for each in found:
        table.add_row(each["kind"], ", ".join(each["columns"]), each["score"], "yes" if each["ready"] else "no")
    console = Console(soft_wrap=False)
    console.print(table)
    for each in found:
        if not each["ready"]:
            console.print(f"{each['kind']}: {each['missing']}", markup=False, highlight=False)
