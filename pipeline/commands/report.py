"""`phf report`: write a page on which the thresholds of a labelled dataset can be tried."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.options import AsJson
from scorers.console import print_json

if TYPE_CHECKING:
    from pipeline.reporting.human_labels import HumanLabels


def report(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Labelled dataset: the --output of `phf label`, a folder or a URI.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page; an earlier report there is replaced.")
    ] = Path("report.html"),
    column: Annotated[
        list[str] | None, typer.Option("--column", "-c", help="Score column to show; repeatable. (default: all)")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Show groups of documents too: by a field of their metadata, or by `inputs`, their files.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="COLUMN=FILE",
            help="Compare a column with sentences that people labelled: a .jsonl, .csv or .parquet file with doc_id, "
            "sentence (from 0), misaligned (true or false) and optionally weight; repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page on which the threshold of each score can be moved: what it keeps, and the command that applies it.

    The page shows the share of sentences and characters that a threshold makes
    aligned, and of documents that filtering would keep, by group on request;
    and with --labels its precision and recall; where the dataset has spans, what
    was found by type. It holds no text of the corpus.

    Example: phf report labelled --by inputs --labels toxicity=labelled-by-hand.jsonl
    """
    from pipeline.dataset import open_dataset
    from pipeline.reporting.found_types import count_types
    from pipeline.reporting.human_labels import calibrate, find_scores
    from pipeline.reporting.report_page import render_report, to_dict
    from pipeline.reporting.threshold_shares import count_shares
    from scorers.errors import UserError
    from scorers.terminal import Terminal

    opened = open_dataset(dataset)
    for each in column or []:
        opened.require_column(each)
    columns = list(dict.fromkeys(column or opened.columns))
    given = _read_labels(labels or [], columns)
    _check_output(output)
    shares = count_shares(opened, columns, by)
    types = count_types(opened, columns)
    calibrations = {
        each.column: calibrate(
            given[each.column], find_scores(opened, each.column, given[each.column]), each.thresholds
        )
        for each in shares
        if each.column in given
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(render_report(opened, shares, calibrations, by, types), encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write --output {output}: {error.strerror or error}.") from None
    if as_json:
        print_json(to_dict(opened, shares, calibrations, types) | {"output": str(output)})
        return
    Terminal(soft_wrap=True).print(f"The report is {output}: open it in a browser.", markup=False)


def _read_labels(labels: list[str], columns: list[str]) -> "dict[str, HumanLabels]":
    from pipeline.reporting.human_labels import read_labels
    from scorers.errors import UserError

    found = {}
    for each in labels:
        column, separator, path = each.partition("=")
        if not separator or not path:
            raise UserError(f"--labels {each}: write COLUMN=FILE, such as toxicity=labels.jsonl.")
        if column not in columns:
            raise UserError(f"--labels {each}: the report shows no column {column!r}; it shows {', '.join(columns)}.")
        if column in found:
            raise UserError(f"--labels {each}: {column} has labels already. Give one file a column.")
        found[column] = read_labels(path)
    return found


def _check_output(output: Path) -> None:
    """Refuse a page that browsers do not open as one, and to replace a file that is not a report."""
    from pipeline.reporting.report_page import is_report
    from scorers.errors import UserError
    from scorers.stored import read_stored

    if output.is_symlink():
        raise UserError(f"--output {output} is a link. Choose another file, or remove it.")
    try:
        if not output.exists():
            if output.suffix.lower() not in (".html", ".htm"):
                raise UserError(f"--output {output} is a page: give it a name that ends in .html.")
            return
        if is_report(read_stored(output)):
            return
    except OSError as error:
        raise UserError(f"Cannot write --output {output}: {error.strerror or error}. Choose another file.") from None
    raise UserError(f"{output} is not a report of phf. Choose another --output, or remove it.")
