"""`phf score`: add score columns to a labelled dataset."""

from typing import Annotated

import typer

from pipeline.commands.run_labelling import run_and_show
from pipeline.options import (
    Address,
    AsJson,
    ConfigFile,
    Log,
    MaxQuarantined,
    MetricsPort,
    Overrides,
    Scorers,
    Spans,
    Thresholds,
    Workers,
    score_config,
)
from scorers.flags import Sets, given_settings


def score(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Finished output of `phf label`."), Sets("dataset")],
    scorer: Scorers = None,
    threshold: Thresholds = None,
    spans: Spans = None,
    workers: Workers = None,
    address: Address = None,
    max_quarantined: MaxQuarantined = None,
    log: Log = None,
    metrics_port: MetricsPort = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Add score columns to a labelled dataset; existing columns are not scored again.

    Rows are read from the dataset, not from its inputs. The same command resumes where it stopped, and the dataset
    stays as it was until the command is done. A record that a new scorer cannot score is quarantined and counted.

    With --spans and a column of the dataset, its scorer runs again and also stores where it found something.

    Exit status: as for `phf label`.

    Example: phf score labelled --scorer style=pycodestyle --threshold style=0
    """
    given = given_settings(score, locals())
    settings = score_config(
        given, scorers=scorer, thresholds=threshold, spans=spans, config=config, overrides=overrides
    )
    from pipeline.labelling.score import run_score

    run_and_show(settings, lambda reporter, log: run_score(settings, reporter, log), as_json=as_json)
