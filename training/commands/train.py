"""`phf train`: pretrain a language model on a labelled dataset with one of the objectives."""

import os
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scorers.console import print_json, set_up_logs
from scorers.errors import UserError
from training.run.launch import LAUNCHED, LAUNCHERS, Launch
from training.run.slurm import slurm_ranks

if TYPE_CHECKING:
    from training.config import TrainConfig

_HERE = "here"


def _start(folder: str, model: str | None) -> dict[str, Any]:
    """The model's settings that start from what another run has learnt, or from any Hugging Face folder."""
    from training.run.folder import RunFolder

    if model is not None:
        raise UserError("--init-from says which model it is: leave --model out.")
    run = RunFolder(Path(folder))
    if not run.facts.is_file():
        if not (Path(folder) / "config.json").is_file():
            raise UserError(f"--init-from {folder} is neither a run of phf train nor a Hugging Face folder.")
        return {"name": folder, "pretrained": True}
    if not run.model.is_dir():
        facts = run.read_facts()
        raise UserError(
            f"--init-from {folder}: that run is {facts.status} at step {facts.step:,} of {facts.horizon.steps:,}, "
            "without a model yet. The same command that began it goes on with it."
        )
    return {"name": str(run.model), "pretrained": True}


def _launch(on: str, asked: Launch, config: "Callable[[], TrainConfig]") -> int:
    if on not in LAUNCHERS:
        raise UserError(f"--on {on}: there is no such place to train; there are {', '.join(sorted(LAUNCHERS))}.")
    if on == _HERE and (asked.address is not None or asked.gpus is not None):
        raise UserError("--address and --gpus-per-rank are for a cluster: say --on ray with them, or leave them out.")
    if "WORLD_SIZE" in os.environ or slurm_ranks(os.environ):
        raise UserError(
            "A launcher has started this process as one of several (WORLD_SIZE is set, or srun has several tasks): "
            "leave --on, --ranks and --max-restarts to it, such as torchrun --nproc-per-node and --max-restarts, or "
            "unset WORLD_SIZE."
        )
    if on != _HERE:
        from training.run.job import check_settings

        # What is wrong is said before a cluster is troubled.
        settings = config()
        check_settings(settings, asked.ranks)
        asked = replace(asked, output=Path(settings.output).absolute())
    status: int = pkgutil.resolve_name(LAUNCHERS[on])(asked)
    return status


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def train(
    dataset: Annotated[
        str | None,
        typer.Argument(help="Labelled dataset: the --output of `phf label`, a folder or a URI.", show_default=False),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the run. A run that is there goes on."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="NAME", help="toxicity, pii or pep8 take the paper's presets; any other score column."
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            metavar="NAME",
            help="mle, filtering, conditional, unlikelihood, unlikelihood_soft, rwr or awr. [default: mle]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="nano, tiny, mini, small, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or the path or name of a "
            "Hugging Face causal language model. [default: gpt2]",
            show_default=False,
        ),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="DIR",
            help="Start from the weights and the tokenizer of a finished run, or of a Hugging Face folder.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="NAME",
            help="Hugging Face tokenizer: a folder, or a name on the hub. By default one is trained on the dataset.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", metavar="NAME", help="Score column, where it is not named as the task."),
    ] = None,
    num_tokens: Annotated[
        float | None,
        typer.Option("--num-tokens", metavar="N", help="Tokens to train on in all, such as 1e6.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Blocks a step, over all ranks.", show_default=False),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="X", help="Peak learning rate.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Of initialisation, order and dropped tags.", show_default=False),
    ] = None,
    deepspeed: Annotated[
        str | None,
        typer.Option("--deepspeed", metavar="FILE", help="A DeepSpeed JSON of your own, merged under the settings."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML with the same settings as --set; flags win over it."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, such as training.warmup_ratio=0.02; wins over all else."
        ),
    ] = None,
    ranks: Annotated[
        int,
        typer.Option("--ranks", min=1, metavar="N", help="Processes to start; one a GPU where there are GPUs."),
    ] = 1,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts", min=0, metavar="N", help="How often to start again where a rank was killed or hung."
        ),
    ] = 0,
    on: Annotated[
        str,
        typer.Option("--on", metavar="PLACE", help="Where ranks are started: here, or ray: on the nodes of a cluster."),
    ] = _HERE,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="With --on ray, the cluster to join, such as auto or head:6379. (default: a local Ray of its own)",
            show_default=False,
        ),
    ] = None,
    cpus_per_rank: Annotated[
        int, typer.Option("--cpus-per-rank", min=1, metavar="N", help="Cores that Ray reserves for each rank.")
    ] = 1,
    gpus_per_rank: Annotated[
        int | None,
        typer.Option(
            "--gpus-per-rank",
            min=0,
            max=1,
            metavar="N",
            help="GPUs that Ray reserves for each rank, 0 or 1. (default: 1 where the cluster has any)",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts of the run as JSON on stdout.")] = False,
) -> None:
    """Pretrain a language model on a labelled dataset.

    The tokens are prepared on first use, and everything that was resolved is printed before step 0. The same command
    goes on with a run that was stopped, exactly, from its newest checkpoint; SIGTERM, SIGUSR1 and Ctrl-C save one and
    exit with status 75. --ranks starts several processes, with --on ray on a cluster; it works the same under
    launchers of yours: torchrun --nproc-per-node 2 -m phf train labelled ...

    Example: phf train labelled --task toxicity --objective conditional --model tiny --output runs/conditional
    --set training.num_tokens=1e6
    """
    set_up_logs()
    start = {} if init_from is None else _start(init_from, model)
    flags = {
        "output": output,
        "task": task,
        "data": {"dataset": dataset, "column": column, "tokenizer": tokenizer or start.get("name")},
        "model": {"name": model, **start},
        "objective": {"name": objective},
        "training": {
            "num_tokens": num_tokens,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
            "deepspeed": deepspeed,
        },
    }

    def settings() -> "TrainConfig":
        from training.settings import resolve_config

        return resolve_config(config, flags, overrides or [])

    launch = Launch(sys.argv[1:], ranks, max_restarts, _tell, None, address, cpus_per_rank, gpus_per_rank)
    elsewhere = on != _HERE or address is not None or gpus_per_rank is not None
    if LAUNCHED not in os.environ and (elsewhere or ranks > 1 or max_restarts):
        raise typer.Exit(_launch(on, launch, settings))
    from rich.console import Console

    from training.run.distributed import World
    from training.run.job import train as run
    from training.run.stopping import stoppable

    world = World.from_environment()
    try:
        with stoppable():
            facts = run(settings(), Console(stderr=as_json, highlight=False))
    except UserError as error:
        if not world.is_main:
            # Rank 0 says it for all.
            raise typer.Exit(error.exit_code) from None
        raise
    if as_json and world.is_main:
        print_json(facts.model_dump(mode="json"))
