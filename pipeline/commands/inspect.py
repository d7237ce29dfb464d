"""`phf inspect`: show the scores of a labelled dataset."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.options import AsJson
from scorers.console import print_json

if TYPE_CHECKING:
    from pipeline.dataset import LabelledDataset


def inspect(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Labelled dataset: the --output of `phf label`, a folder or a URI.")
    ],
    column: Annotated[
        list[str] | None, typer.Option("--column", "-c", help="Score column to show; repeatable. (default: all)")
    ] = None,
    show_text: Annotated[
        bool,
        typer.Option(
            "--show-text", help="Also print example sentences from the corpus, which may be offensive or private."
        ),
    ] = False,
    examples: Annotated[int, typer.Option(min=1, help="Sentences of each kind that --show-text prints.")] = 3,
    quarantined: Annotated[
        bool,
        typer.Option(
            "--quarantined", help="List the quarantined records instead: sources, positions and reasons, no text."
        ),
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=0, metavar="N", help="Entries that --quarantined lists; 0 for all.")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Show the scores of a labelled dataset: histograms, exact quantiles, and the share aligned at the threshold.

    With --quarantined: list the records that are not in it and why, and the inputs that could not be read to the end.

    Example: phf inspect labelled --column toxicity --show-text
    """
    from dataclasses import asdict, replace

    from pipeline.checking.examples import find_examples
    from pipeline.checking.inspect import inspect_dataset
    from pipeline.dataset import open_dataset

    opened = open_dataset(dataset)
    if quarantined:
        _list_quarantined(opened, limit, as_json=as_json)
        return
    for each in column or []:
        opened.require_column(each)
    report = inspect_dataset(opened)
    if column:
        report = replace(report, columns=[each for each in report.columns if each.column in column])
    shown = {each.column: find_examples(opened, each.column, examples) for each in report.columns if show_text}
    if as_json:
        facts = report.to_dict()
        if show_text:
            facts["examples"] = {
                name: {group: [asdict(each) for each in sentences] for group, sentences in groups.items()}
                for name, groups in shown.items()
            }
        print_json(facts)
        return

    from pipeline.commands.inspect_view import show_examples, show_report
    from scorers.terminal import Terminal

    console = Terminal()
    show_report(console, report)
    for name, groups in shown.items():
        show_examples(console, name, groups)


def _list_quarantined(dataset: "LabelledDataset", limit: int, *, as_json: bool) -> None:
    from pipeline.checking.quarantine import read_quarantine

    found = read_quarantine(dataset, limit or None)
    if as_json:
        print_json(found.to_dict())
        return

    from pipeline.commands.inspect_view import show_quarantine
    from scorers.terminal import Terminal

    show_quarantine(Terminal(), found)
