"""`phf repair`: repair a labelled dataset."""

from typing import Annotated

import typer

from pipeline.options import Address, AsJson, Overrides, Workers, execution_config
from scorers.console import print_json
from scorers.errors import EXIT_INCOMPLETE
from scorers.flags import given_settings


def repair(
    dataset: Annotated[
        str, typer.Argument(metavar="DIR", help="The --output of a `phf label` run: a folder or a URI, with its job.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")] = False,
    workers: Workers = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Repair what `phf verify` finds damaged in a labelled dataset, and leave everything else untouched.

    Manifest, card, shards, ledger, segments and plan are rebuilt from the data that they were made from.

    A unit with a damaged part is labelled again from the inputs, with the same scorers.

    Run it in the folder in which `phf label` was run, and with the same execution.pools, if any were set.

    Exit status: 0 all is whole; 2 wrong usage; 4 something cannot be repaired; 75 stopped, resumable.

    Example: phf repair labelled --dry-run
    """
    from pipeline.commands.repair_view import show_repaired
    from pipeline.labelling.monitoring.console import reporter_for
    from pipeline.upkeep.repair import repair as repair_dataset
    from scorers.terminal import Terminal

    execution = execution_config(given_settings(repair, locals()), overrides)
    with reporter_for(Terminal(stderr=True)) as reporter:
        repaired = repair_dataset(dataset, execution, reporter, dry_run=dry_run)
    if as_json:
        print_json(repaired.to_dict())
    else:
        show_repaired(Terminal(soft_wrap=True), repaired)
    if not repaired.ok:
        raise typer.Exit(EXIT_INCOMPLETE)
