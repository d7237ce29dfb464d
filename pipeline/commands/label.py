"""`phf label`."""

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
    label_config_from_flags,
)
from scorers.errors import UserError


def label(
    inputs: Inputs = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where the dataset goes: a folder, or s3://, gs://, az://.",
            show_default=False,
        ),
    ] = None,
    scorer: Scorers = None,
    threshold: Thresholds = None,
    text_field: TextField = None,
    id_field: IdField = None,
    kind: Kind = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Worker processes. (default: one a core)", show_default=False),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster to join, such as auto or ray://head:10001. (default: a local Ray of its own)",
            show_default=False,
        ),
    ] = None,
    unit_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Input a unit, the work lost with a worker. (default: 256KiB)", show_default=False
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Rows a shard, in memory. (default: 256MB)", show_default=False),
    ] = None,
    max_quarantined: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Records in quarantine above which the exit status is 3. (default: 0)",
            show_default=False,
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Append a log of JSON lines to FILE; - for stderr, in place of the lines for people.",
            show_default=False,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="Serve metrics for Prometheus at PORT while the local Ray runs.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Label a corpus: score every sentence, and seal a dataset with scores and preference tags.

    The same command goes on where it was stopped; a committed unit is never scored again.

    A record that cannot be labelled goes into quarantine and is counted.

    Exit status: 0 done; 2 wrong usage; 3 done, but too much in quarantine; 4 incomplete; 75 stopped, resumable.

    Example: phf label corpus/*.jsonl.zst --output labelled --scorer toxicity=linear --scorer pii --threshold pii=0
    """
    settings = label_config_from_flags(
        inputs=inputs,
        output=output,
        scorers=scorer,
        thresholds=threshold,
        config=config,
        overrides=overrides,
        text_field=text_field,
        id_field=id_field,
        kind=kind,
        unit_size=unit_size,
        shard_size=shard_size,
        workers=workers,
        address=address,
        max_quarantined=max_quarantined,
        log=log,
        metrics_port=metrics_port,
    )
    from rich.console import Console

    from pipeline.labelling.driver import run_label
    from pipeline.labelling.log_file import STDERR
    from pipeline.labelling.reporting import reporting
    from pipeline.labelling.secrecy import forbid_core_dumps
    from pipeline.labelling.summary import check_quarantine, show_summary, summary_facts
    from scorers.console import print_json

    forbid_core_dumps()
    try:
        with reporting(settings, Console(stderr=True)) as (reporter, log_of_run):
            summary = run_label(settings, reporter, log_of_run)
            if as_json:
                print_json(summary_facts(summary))
            else:
                show_summary(summary, Console(highlight=False))
            check_quarantine(summary, settings.execution.max_quarantined)
    except UserError as error:
        if settings.execution.log != STDERR:
            raise
        # The last line of the log has said it.
        raise typer.Exit(error.exit_code) from None
