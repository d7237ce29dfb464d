"""`phf score`."""

from typing import Annotated

import typer

from pipeline.options import (
    Address,
    AsJson,
    ConfigFile,
    MaxQuarantined,
    Overrides,
    Scorers,
    Thresholds,
    Workers,
    score_config_from_flags,
)


def score(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Output of `phf label`, finished.")],
    scorer: Scorers = None,
    threshold: Thresholds = None,
    workers: Workers = None,
    address: Address = None,
    max_quarantined: MaxQuarantined = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Add columns of scores to a labelled dataset; nothing that is scored already is scored again.

    Rows are read from the dataset, not from its inputs. The same command goes on where it was stopped, and until it is
    done the dataset stays as it was. A record that a new scorer cannot score goes into quarantine and is counted.

    Exit status: as of `phf label`.

    Example: phf score labelled --scorer style=pycodestyle --threshold style=0
    """
    settings = score_config_from_flags(
        dataset=dataset,
        scorers=scorer,
        thresholds=threshold,
        config=config,
        overrides=overrides,
        workers=workers,
        address=address,
        max_quarantined=max_quarantined,
    )
    from rich.console import Console

    from pipeline.labelling.quarantine_limit import QuarantineLimit
    from pipeline.labelling.reporter import reporter_for
    from pipeline.labelling.score import run_score
    from pipeline.labelling.summary import check_quarantine, show_summary, summary_facts
    from scorers.console import print_json

    with reporter_for(Console(stderr=True)) as reporter:
        summary = run_score(settings, reporter)
    if as_json:
        print_json(summary_facts(summary))
    else:
        show_summary(summary, Console(highlight=False))
    check_quarantine(summary, QuarantineLimit.parse(settings.execution.max_quarantined))
