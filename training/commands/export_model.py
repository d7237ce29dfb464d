"""`phf export-model`: a run's model from any of its checkpoints, as a Hugging Face folder."""

from pathlib import Path
from typing import Annotated

import typer

from scorers.console import print_json, set_up_logs
from scorers.errors import UserError


def export_model(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder that `phf train` writes, finished or not.")],
    step: Annotated[
        int | None,
        typer.Option("--step", min=1, metavar="N", help="Of this step; by default the newest.", show_default=False),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Of the best checkpoint, by training.best_metric.")] = False,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="The best by another figure of its evaluations."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="A new folder. (default: RUN/exports/step-N)"),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Where the labelled dataset lies now, if it was moved since training.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the folder and the step as JSON.")] = False,
) -> None:
    """Write the model of a checkpoint as a Hugging Face folder.

    The folder is what `phf train` leaves in RUN/model at the end: weights, tokenizer, and a generation config that bans
    control tokens; a value head beside them. It works while the run goes on, on a CPU, whatever ranks and ZeRO stage
    wrote the checkpoint, whose hashes are verified first.

    Example: phf export-model runs/conditional --best
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
    place = output or folder.exports / f"step-{step or 0:08d}"
    done = export_checkpoint(folder, step, place, dataset)
    if as_json:
        print_json({"model": str(place), "step": done})
    else:
        Terminal().print(f"The model of step {done:,} is in {place}.", soft_wrap=True)
