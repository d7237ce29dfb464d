"""`phf verify`: check that a dataset is as it was sealed, and that nothing is lost."""

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
        typer.Option(help="Also check the job and the scored units that the dataset was made from, if present."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Check that a labelled dataset is whole: hashes, page checksums, lossless sentences, tags, and conservation.

    If its job is present, the scored units are checked too; --no-units skips them.

    Exit status: 0 if nothing is wrong; 1 after listing all problems, which `phf repair` repairs.

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
