"""`phf scorers` and `phf doctor`: list the scorers, and check which run on this machine and how fast."""

from typing import Annotated

import typer

from scorers.console import command, print_json

app = typer.Typer()


@app.command(rich_help_panel="Labelling")
@command
def scorers(
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")] = False,
) -> None:
    """List the kinds of scorers, and whether each can run on this machine.

    Name the kind that scores a column: phf label ... --scorer toxicity=linear --scorer pii

    Packages add kinds through entry points in the group phf.scorers.
    """
    from scorers.listing import list_kinds

    found = list_kinds()
    if as_json:
        print_json(found)
        return

    from rich.table import Table

    from scorers.terminal import Terminal

    table = Table("Kind", "Default for", "Score of a sentence", "Runs here", show_lines=True)
    for each in found:
        table.add_row(each["kind"], ", ".join(each["columns"]), each["score"], "yes" if each["ready"] else "no")
    console = Terminal(soft_wrap=False)
    console.print(table)
    for each in found:
        if not each["ready"]:
            console.print(f"{each['kind']}: {each['missing']}", highlight=False)


@app.command(rich_help_panel="Labelling")
@command
def doctor(
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            "-s",
            metavar="COLUMN[=KIND[:VALUE]]",
            help="A scorer that has to run here, as in `phf label`; repeat for more. (default: all kinds)",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Device for scorers that run a network, such as cuda.")
    ] = "cpu",
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads per scorer.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, metavar="S", help="Time to measure each scorer for.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")] = False,
) -> None:
    """Try each scorer on this machine: show its weights, precision and speed, and what is missing.

    Builds and measures each scorer in a process of its own, on text from Python's documentation and library. Also
    shows the facts of the machine that matter. Never downloads Detoxify's weights.

    Exit status: 0 every scorer given with --scorer runs here; 1 one of them does not; 2 wrong usage.

    Example: phf doctor --scorer toxicity=detoxify:unbiased --scorer pii
    """
    from scorers.contract import Execution
    from scorers.doctor.report import all_scorers, examine
    from scorers.doctor.view import print_report
    from scorers.registry import parse_scorers
    from scorers.terminal import Terminal
    from scorers.trusted_pickles import trusted_by_user

    specs = parse_scorers(scorer or [])
    trusted = trusted_by_user(spec.options for spec in specs.values())
    execution = Execution(device=device, threads=threads, trusted_sha256=trusted)
    with Terminal(stderr=True).status("") as status:
        report = examine(specs or all_scorers(), execution, seconds, lambda what: status.update(f"Looking at {what} …"))
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(Terminal(), report)
    if specs and any(each.problem is not None for each in report.scorers):
        raise typer.Exit(1)
