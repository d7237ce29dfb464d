"""`phf export-model`: export the model of any checkpoint of a run as a Hugging Face folder."""

from pathlib import Path
from typing import Annotated

import typer

from scorers.console import print_json, set_up_logs
from scorers.errors import UserError
from training.options import MovedDataset


def export_model(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a `phf train` run, finished or not.")],
    step: Annotated[
        int | None,
        typer.Option(
            "--step", min=1, metavar="N", help="The checkpoint of this step; by default the newest.", show_default=False
        ),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The best checkpoint by training.best_metric.")] = False,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="The best checkpoint by another metric."),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(
            "--condition",
            metavar="NAME",
            help="Conditional runs: let the tokenizer put this control token before every text: aligned, misaligned or "
            "quantile_K.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="A new folder. (default: RUN/exports/step-N, or step-N-NAME with --condition)",
        ),
    ] = None,
    dataset: MovedDataset = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the folder and the step as JSON.")] = False,
) -> None:
    """Write the model of a checkpoint as a Hugging Face folder.

    The folder is like RUN/model after training: weights, tokenizer, a generation config that bans control tokens, and
    the value head, if any. This works while the run is training, on a CPU, for any number of ranks and ZeRO stage. The
    checkpoint's hashes are verified first.

    With --condition, transformers, vLLM and others write after that control
    token without knowing of it: the tokenizer puts the token that begins a
    document and the control token before every text, and the generation config
    has the sampling settings of the run's evaluation.

    Example: phf export-model runs/conditional --condition aligned
    """
    set_up_logs()
    if step is not None and (best or metric is not None):
        raise UserError("--step and --best exclude each other: give one of them.")
    from scorers.terminal import Terminal
    from training.export.checkpoint import best_step, export_checkpoint
    from training.runs import checkpoints
    from training.runs.folder import RunFolder

    folder = RunFolder.existing(run)
    if best or metric is not None:
        step = best_step(folder, metric)
    if step is None:
        step = next(reversed(checkpoints.steps(folder.checkpoints)), None)
    place = output or folder.exports / f"step-{step or 0:08d}{f'-{condition}' if condition else ''}"
    done = export_checkpoint(folder, step, place, dataset, condition)
    if as_json:
        print_json({"model": str(place), "step": done, **({"condition": condition} if condition else {})})
    else:
        Terminal().print(f"The model of step {done:,} is in {place}.", soft_wrap=True)
