"""`phf classify`: finetune runs on labelled texts, and measure how well they classify others."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scorers.console import print_json, set_up_logs
from scorers.flags import Sets, given_settings
from training.options import Device

if TYPE_CHECKING:
    from training.runs.classification_report import ClassificationReport
    from training.runs.folder import RunFolder


def classify(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders that `phf train` wrote.")],
    labels: Annotated[
        str,
        typer.Option(
            "--labels", metavar="FILE", help="Texts and their classes: JSON Lines, CSV or Parquet.", show_default=False
        ),
    ],
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="FILE", help="Texts to test on; by default a fifth of those of --labels."),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option("--text-field", metavar="NAME", help="Field of the texts. (default: text)"),
        Sets("text_field"),
    ] = None,
    label_field: Annotated[
        str | None,
        typer.Option("--label-field", metavar="NAME", help="Field of the classes. (default: label)"),
        Sets("label_field"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Times that each text is learnt. (default: 3)"), Sets("epochs")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", help="Highest; by default a tenth of that of the run's training."),
        Sets("learning_rate"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Repetitions with other seeds. (default: 3)"), Sets("trials")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as batch_size=32 or test_share=0.5."),
    ] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
) -> None:
    """Finetune each run on labelled texts, and measure how well it classifies others.

    It shows whether a preference has cost what a model is later finetuned for.
    All weights are finetuned, with a linear layer on the last token's hidden
    state; a conditional model reads each text after its best control token.
    Figures are kept in RUN/evaluation for `phf compare`, the finetuned models
    are not; finished trials are kept.

    Example: phf classify runs/mle runs/conditional --labels reviews.jsonl
    """
    flags = given_settings(classify, locals())
    set_up_logs()
    from scorers.settings import load_settings
    from training.capability.classify import classify as classify_with
    from training.capability.evaluate_tasks import check_run
    from training.capability.labelled_texts import read_labelled_texts
    from training.evaluation.checks import torch_device
    from training.measuring_config import ClassificationConfig
    from training.progress import StageProgress
    from training.runs.folder import RunFolder

    config = load_settings(ClassificationConfig, flags=flags, overrides=overrides or [])
    # Check all runs first: a problem with the last must not appear after an hour of testing the others.
    chosen = [RunFolder.existing(run) for run in runs]
    for run in chosen:
        check_run(run)
    place, texts = torch_device(device), read_labelled_texts(labels, test, config)
    found: list[dict[str, Any]] = []
    for run in chosen:
        with StageProgress(str(run.path)) as progress:
            report = classify_with(run, texts, config, device=place, progress=progress)
        if as_json:
            figures = {"accuracy": report.accuracy, "macro_f1": report.macro_f1}
            shown = {name: None if each is None else each.model_dump() for name, each in figures.items()}
            found.append({"path": str(run.path), **shown, **report.model_dump(mode="json")})
        else:
            _print(run, report)
    if as_json:
        print_json({"runs": found})


def _print(run: "RunFolder", report: "ClassificationReport") -> None:
    from rich.table import Table
    from rich.text import Text

    from scorers.amounts import format_count
    from scorers.terminal import Terminal
    from training.evaluation.format_figures import interval, number, percent

    table = Table(title=Text(f"{run.path} on {report.name}"), title_justify="left", title_style="bold", box=None)
    table.add_column("")
    for name in (*(f"trial {trial + 1}" for trial in range(len(report.trials))), "mean", "95 % interval"):
        table.add_column(name, justify="right")
    for name, values, estimate, show in (
        ("accuracy", [each.accuracy for each in report.trials], report.accuracy, percent),
        ("macro F1", [each.macro_f1 for each in report.trials], report.macro_f1, number),
    ):
        if estimate is not None:
            table.add_row(name, *map(show, values), show(estimate.value), interval(estimate, show))
    console = Terminal()
    console.print_figures(table)
    after = f", after <|{report.condition}|>" if report.condition else ""
    console.print(
        f"{format_count(report.test, 'text')} of {format_count(report.classes, 'class', 'classes')}, finetuned on "
        f"{report.train:,}{after}. Always guessing the most frequent class has {percent(report.majority)}.",
        markup=False,
    )
    if report.shortened:
        console.print(
            f"Note: of {format_count(report.shortened, 'text')} only the beginning fits into the context.",
            style="yellow",
            markup=False,
        )
