"""`phf export`: write a labelled dataset in the format of the PHF authors' published datasets."""

from functools import partial
from typing import Annotated

import typer

from pipeline.options import AsJson
from scorers.console import print_json


def export(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Labelled dataset: the --output of `phf label`, a folder or a URI.")
    ],
    column: Annotated[str, typer.Option("--column", "-c", help="Score column to write.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A .jsonl, .jsonl.gz, .jsonl.zst or .parquet file, or a folder for Parquet files; local, or s3://, "
            "gs://, az://. Nothing is overwritten.",
        ),
    ],
    redact: Annotated[
        list[str] | None,
        typer.Option(
            "--redact",
            metavar="COLUMN",
            help="Replace what the scorer of COLUMN found by its type, such as {{EMAIL}}; needs its spans (phf label "
            "--spans); repeatable.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a labelled dataset as rows of texts, meta, scores, avg_score and num_sents, the PHF authors' format.

    Documents to which the scorer does not apply are left out and counted; with --redact, also those that its scorer has
    not searched. What --redact hides in the texts may still be in their meta, which is written as it is.

    To read it back: phf label FILE --text-field texts --scorer toxicity=column:scores --output DIR

    Example: phf export labelled --column toxicity --output labelled.jsonl.gz
    """
    from dataclasses import asdict

    from pipeline.dataset import open_dataset
    from pipeline.export import export as export_dataset
    from pipeline.labelling.monitoring.console import reporter_for
    from scorers.amounts import format_count
    from scorers.errors import IncompleteError
    from scorers.terminal import Terminal

    opened = open_dataset(dataset)
    with reporter_for(Terminal(stderr=True)) as reporter:
        try:
            measure = partial(reporter.measure, "Exporting")
            written = export_dataset(opened, column, output, measure, redact=redact or [])
        except OSError as error:
            raise IncompleteError(
                f"Cannot write {output}: {error.strerror or error}. Nothing was left there."
            ) from None
    if as_json:
        print_json({"dataset": dataset, "column": column, "output": output, **asdict(written)})
        return
    console = Terminal(soft_wrap=True)
    console.print(
        f"{output} holds {format_count(written.documents, 'document')} with "
        f"{format_count(written.sentences, 'sentence')}.",
        markup=False,
    )
    if written.unsearched:
        console.print(
            f"Left out: {format_count(written.unsearched, 'document')} that no scorer of {', '.join(redact or [])} has "
            "searched.",
            markup=False,
        )
    if written.left_out:
        console.print(
            f"Left out: {format_count(written.left_out, 'document')} to which the scorer of {column!r} does not apply.",
            markup=False,
        )
