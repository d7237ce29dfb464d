"""`phf train`: pretrain a language model on a labelled dataset with one of the objectives."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scorers.console import print_json, set_up_logs
from scorers.errors import UserError
from training.run.launch import LAUNCHED, launch, rank_command


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


def _launch(ranks: int, max_restarts: int) -> int:
    if "WORLD_SIZE" in os.environ:
        raise UserError(
            "A launcher has started this process as one of several (WORLD_SIZE is set): leave --ranks and "
            "--max-restarts to it, such as torchrun --nproc-per-node and --max-restarts, or unset WORLD_SIZE."
        )

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    return launch(rank_command(), ranks=ranks, max_restarts=max_restarts, tell=tell)


def _plan(config: Any, ranks: int, described: dict[str, Any], console: Any, *, as_json: bool) -> None:
    from training.run.forecast import forecast
    from training.run.machines import Asked
    from training.run.plan import print_forecast

    giga = {name: described[name] * 1e9 for name in ("memory", "bandwidth") if described[name] is not None}
    found = forecast(config, Asked(ranks, described["device"], **giga, utilisation=described["utilisation"]))
    print_forecast(console, found)
    if as_json:
        print_json(found.facts())
    if not found.fits:
        remedies = "; or ".join(found.remedies) or "a smaller model, a shorter data.context_length, or more memory"
        raise UserError(
            f"A rank would need {found.memory.total / 1e9:,.1f} GB, and {found.machine.name} has "
            f"{found.machine.memory / 1e9:,.1f} GB. What would help: {remedies}."
        )


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
        typer.Option("--ranks", min=1, metavar="N", help="Processes on this machine; one a GPU where there are GPUs."),
    ] = 1,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts", min=0, metavar="N", help="How often to start again where a rank was killed or hung."
        ),
    ] = 0,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say what the run would take of memory and time, and start nothing."),
    ] = False,
    plan_device: Annotated[
        str | None,
        typer.Option("--plan-device", metavar="NAME", help="With --plan: a card, such as H100. [default: here]"),
    ] = None,
    plan_memory: Annotated[
        float | None, typer.Option("--plan-memory", min=0.001, metavar="GB", help="With --plan: memory of a device.")
    ] = None,
    plan_bandwidth: Annotated[
        float | None,
        typer.Option("--plan-bandwidth", min=0.001, metavar="GB/S", help="With --plan: between two ranks."),
    ] = None,
    plan_utilisation: Annotated[
        float | None,
        typer.Option(
            "--plan-utilisation", min=0.001, max=1, metavar="X", help="With --plan: share of the peak that is reached."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts of the run, or the plan, as JSON on stdout.")
    ] = False,
) -> None:
    """Pretrain a language model on a labelled dataset.

    The tokens are prepared on first use, and everything that was resolved is printed before step 0. The same command
    goes on with a run that was stopped, exactly, from its newest checkpoint; SIGTERM, SIGUSR1 and Ctrl-C save one and
    exit with status 75. --ranks starts several processes; it works the same under launchers of yours:
    torchrun --nproc-per-node 2 -m phf train labelled ...

    Example: phf train labelled --task toxicity --objective conditional --model tiny --output runs/conditional
    --set training.num_tokens=1e6
    """
    set_up_logs()
    described = {"device": plan_device, "memory": plan_memory, "bandwidth": plan_bandwidth}
    described["utilisation"] = plan_utilisation
    if not plan and any(value is not None for value in described.values()):
        raise UserError("--plan-device and the other --plan-… flags say what --plan is for; give --plan too.")
    if not plan and (ranks > 1 or max_restarts) and LAUNCHED not in os.environ:
        raise typer.Exit(_launch(ranks, max_restarts))
    from rich.console import Console

    from training.settings import resolve_config

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
    console = Console(stderr=as_json, highlight=False)
    if plan:
        # What a plan can do without.
        missing = {"output": "", "task": "none", "data": {"dataset": ""}}
        resolved = resolve_config(config, flags, overrides or [], defaults=missing)
        _plan(resolved, ranks, described, console, as_json=as_json)
        return

    from training.run.distributed import World
    from training.run.job import train as run

    world = World.from_environment()
    try:
        facts = run(resolve_config(config, flags, overrides or []), console)
    except UserError as error:
        if not world.is_main:
            # Rank 0 says it for all.
            raise typer.Exit(error.exit_code) from None
        raise
    if as_json and world.is_main:
        print_json(facts.model_dump(mode="json"))
