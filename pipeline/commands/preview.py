"""`phf preview`: label a few records and print their scores and tags."""

from typing import Annotated

import typer

from pipeline.options import (
    AsJson,
    ConfigFile,
    IdField,
    Inputs,
    Kind,
    Overrides,
    Scorers,
    TextField,
    Thresholds,
    label_config,
)
from scorers.console import print_json
from scorers.flags import given_settings


def preview(
    inputs: Inputs = None,
    scorers: Scorers = None,
    thresholds: Thresholds = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Records to label, from the start.")] = 5,
    sentences: Annotated[int, typer.Option(min=1, help="Sentences to show of each record.")] = 20,
    redact: Annotated[
        bool,
        typer.Option("--redact", help="Replace what a scorer such as pii finds by its type, such as {{EMAIL}}."),
    ] = False,
    text_field: TextField = None,
    id_field: IdField = None,
    kind: Kind = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Label the first records of a corpus and print their sentences with scores and tags; nothing is written.

    Example: phf preview corpus/ --scorer toxicity=linear --scorer pii --limit 3

    With --redact, findings of scorers are replaced by their types, --json lists their positions, and records that no
    such scorer has read are not shown.
    """
    given = given_settings(preview, locals()) | {"output": "preview"}
    from pipeline.labelling.preview import preview as preview_records

    labelled = preview_records(
        label_config(given, scorers=scorers, thresholds=thresholds, config=config, overrides=overrides),
        limit,
        redact=redact,
    )
    if as_json:
        print_json(labelled.to_dict())
        return

    from pipeline.commands.preview_view import show_preview
    from scorers.terminal import Terminal

    show_preview(Terminal(), labelled, most_sentences=sentences)
