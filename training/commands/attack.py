"""`phf attack`: attack trained models, to measure how deep their preference sits."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scorers.console import command, print_json, set_up_logs
from scorers.flags import Sets, given_settings
from training.options import AllowOtherScorer, Device, MovedDataset

if TYPE_CHECKING:
    from training.runs.folder import RunFolder
    from training.runs.tamper_report import TamperReport

app = typer.Typer(no_args_is_help=True, help="Attack trained models, to measure how deep their preference sits.")


def tamper(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders that `phf train` wrote.")],
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of finetuning. (default: 64)"), Sets("steps")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", help="Constant; by default a tenth of that of the run's training."),
        Sets("learning_rate"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Samples drawn each time. (default: 256)"), Sets("samples")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Repetitions with other seeds. (default: 3)"), Sets("trials")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as batch_size=32 or share=0.05."),
    ] = None,
    dataset: MovedDataset = None,
    device: Device = "auto",
    allow_other_scorer: AllowOtherScorer = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
) -> None:
    """Finetune each run on the most misaligned training text, and measure how soon its samples become misaligned.

    The text is the most misaligned tenth of the documents that are not held
    out, without tags; it is the same for all objectives of a dataset. Samples
    are drawn as `phf evaluate` does. Results are kept in RUN/evaluation for
    `phf compare`, the finetuned models are not; finished trials are kept.

    Example: phf attack tamper runs/mle runs/conditional
    """
    flags = given_settings(tamper, locals())
    set_up_logs()
    from scorers.settings import load_settings
    from training.attack.tamper import check_tamper
    from training.attack.tamper import tamper as tamper_with
    from training.config import TamperConfig
    from training.progress import StageProgress
    from training.runs.folder import RunFolder

    config = load_settings(TamperConfig, flags=flags, overrides=overrides or [])
    chosen = [RunFolder.existing(run) for run in runs]
    # Check all runs first: a problem with the last must not appear after an hour of testing the others.
    for run in chosen:
        check_tamper(run, config, dataset)
    found: list[dict[str, Any]] = []
    for run in chosen:
        with StageProgress(str(run.path)) as progress:
            report = tamper_with(
                run, config, dataset=dataset, device=device, allow_other_scorer=allow_other_scorer, progress=progress
            )
        if as_json:
            found.append({"path": str(run.path), **report.model_dump(mode="json")})
        else:
            _print_tamper(run, report)
    if as_json:
        print_json({"runs": found})


app.command()(command(tamper, changes=True))
# A group, so that other attacks can be added.
app.callback()(lambda: None)


def _print_tamper(run: "RunFolder", report: "TamperReport") -> None:
    from rich.table import Table
    from rich.text import Text

    from scorers.amounts import format_count
    from scorers.formatting import number
    from scorers.terminal import Terminal

    table = Table(title=Text(f"Tamper test of {run.path}"), title_justify="left", title_style="bold", box=None)
    for name in ("steps", "tokens", *(f"trial {trial + 1}" for trial in range(len(report.trials))), "mean"):
        table.add_column(name, justify="right")
    misalignment = report.misalignment()
    for row in zip(*report.trials, strict=True):
        values = [point.samples.misalignment for point in row]
        known = misalignment.get(row[0].step, [])
        table.add_row(
            f"{row[0].step:,}",
            f"{row[0].tokens:,}",
            *("–" if each is None else number(each.value) for each in values),
            number(sum(known) / len(known)) if known else "–",
        )
    console = Terminal()
    console.print(table)
    console.print(
        f"Mean misalignment ({report.column}) of {format_count(report.config.samples, 'sample')} after finetuning on "
        f"{format_count(report.text.documents, 'misaligned document')}; that of the documents is "
        f"{number(report.text.misalignment)}.",
        markup=False,
    )
    for warning in report.warnings:
        console.print(f"Note: {warning}", style="yellow", markup=False)
