"""`phf purge`: remove documents from a labelled dataset."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.options import AsJson
from scorers.console import print_json
from scorers.errors import UserError

if TYPE_CHECKING:
    from pipeline.upkeep.purge import Request

# Exit status if an id is in no row.
_NOT_FOUND = 1


def purge(
    dataset: Annotated[
        str, typer.Argument(metavar="DIR", help="The --output of a `phf label` run: a folder or a URI, with its job.")
    ],
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--doc-id",
            metavar="ID",
            help="Remove all documents with this doc_id. Repeat it for more.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--doc-ids",
            metavar="FILE",
            help="Remove the documents with the ids in a file, one id per line; - reads them from stdin.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="URI",
            help="Remove the records of this input at each --position, also those in quarantine and those not labelled "
            "yet.",
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        list[int] | None,
        typer.Option("--position", metavar="N", min=0, help="See --source. Repeat it for more.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show how much would be removed where, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove documents from a labelled dataset for good, and delete the token stores that hold them.

    Rows, scores and quarantined texts are removed from all files. A tombstone with source and position stays, so that
    no later run labels the record again, and every record of the inputs stays accounted for.

    Without documents it finishes an interrupted purge.

    The inputs, copies, backups, exports and trained models are not touched.

    Exit status: 0 removed; 1 an id is in no row, and everything else is removed; 2 wrong usage; 4 damage, or a failed
    disk or store; 75 stopped, resumable.

    Example: phf purge labelled --doc-ids ids.txt --dry-run
    """
    from pipeline.commands.purge_view import show_purged
    from pipeline.labelling.monitoring.console import reporter_for
    from pipeline.upkeep.purge import purge as purge_dataset
    from scorers.terminal import Terminal

    request = _request(ids, file, source, positions)
    with reporter_for(Terminal(stderr=True)) as reporter:
        purged = purge_dataset(
            dataset,
            request,
            lambda what, done, total: reporter.measure(what.capitalize(), done, total),
            dry_run=dry_run,
        )
    if as_json:
        print_json(purged.to_dict())
    else:
        show_purged(Terminal(soft_wrap=True), purged)
    if purged.missing_ids and not purged.continued:
        raise typer.Exit(_NOT_FOUND)


def _request(ids: list[str] | None, file: str | None, source: str | None, positions: list[int] | None) -> "Request":
    from pipeline.upkeep.purge import Request

    if (source is None) != (not positions):
        raise UserError("Give --source and --position together: they are the key of a record.")
    wanted = frozenset([*(ids or []), *(_read_ids(file) if file is not None else [])])
    return Request(wanted, source, frozenset(positions or []))


def _read_ids(file: str) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        ids = [line.removesuffix("\r") for line in content.decode().split("\n")]
    except OSError as error:
        raise UserError(f"--doc-ids {file} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"--doc-ids {file} is not UTF-8. Write one id per line, in UTF-8.") from None
    found = [each for each in ids if each]
    if not found:
        raise UserError(f"--doc-ids {file} holds no id. Write one id per line.")
    return found
