"""`phf verify`: is the dataset what was sealed, and is nothing lost?"""

from functools import partial
from typing import Annotated

import typer

from pipeline.options import AsJson
from scorers.console import print_json


def verify(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Labelled dataset: the --output of `phf label`, a folder or a URI.")
    ],
    inputs: Annotated[
        bool,
        typer.Option(
            "--inputs",
            help="Also read the inputs again and compare every text with them; run it where `phf label` was run.",
        ),
    ] = False,
    units: Annotated[
        bool,
        typer.Option(help="Also check the scored units and the job that the dataset was made from, where they are."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Prove that a labelled dataset is whole: hashes, page checksums, lossless sentences, tags, and conservation.

    Where the job lies beside it, its scored units are checked too; --no-units leaves them out.

    Exits with 0 if nothing is wrong, with 1 after naming everything that is; `phf repair` mends it.

    Example: phf verify labelled
    """
    from pipeline.checking.verify import verify as verify_dataset
    from pipeline.commands.verify_view import show_report
    from pipeline.labelling.monitoring.console import reporter_for
    from scorers.terminal import Terminal

    with reporter_for(Terminal(stderr=True)) as reporter:
        report = verify_dataset(dataset, inputs=inputs, units=units, progress=partial(reporter.measure, "Checking"))
    if as_json:
        print_json(report.to_dict())
    else:
        show_report(Terminal(soft_wrap=True), report)
    if not report.ok:
        raise typer.Exit(1)
