"""`phf retag`: change the thresholds of a labelled dataset."""

from typing import Annotated

import typer

from pipeline.options import AsJson
from scorers.console import print_json


def retag(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Labelled dataset: the --output of `phf label`, a folder or a URI.")
    ],
    thresholds: Annotated[
        list[str],
        typer.Option(
            "--threshold",
            "-t",
            metavar="COLUMN=VALUE",
            help="A sentence is aligned when its score is at most VALUE: a number, or p50 for the 50th percentile over "
            "all sentences. Other columns keep their thresholds.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Tag a labelled dataset again with other thresholds; nothing is scored again.

    The new generation replaces the old one atomically; until then readers find the whole old one.

    Example: phf retag labelled --threshold toxicity=p90
    """
    from pipeline.commands.retag_view import retag_facts, show_retagged
    from pipeline.labelling.monitoring.console import reporter_for
    from pipeline.sealing.retag import retag as retag_dataset
    from pipeline.sealing.thresholds import parse_flags
    from scorers.terminal import Terminal

    given = parse_flags(thresholds)
    with reporter_for(Terminal(stderr=True)) as reporter:
        retagged = retag_dataset(dataset, given, progress=reporter.measure)
    if as_json:
        print_json(retag_facts(dataset, retagged))
    else:
        show_retagged(Terminal(), dataset, retagged)
