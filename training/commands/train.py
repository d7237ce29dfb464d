"""`phf train`: pretrain a language model on a labelled dataset with one of the objectives."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scorers.console import print_json, set_up_logs
from scorers.errors import UserError
from scorers.flags import given_settings
from scorers.stopping import stoppable
from training.commands.train_start import (
    HERE,
    check_held_out,
    check_place,
    check_tokenizer,
    columns,
    launch_ranks,
    mixed_in,
    print_line,
    show_plan,
    start_from,
)
from training.distributed.launch import LAUNCHED, Launch
from training.distributed.slurm_environment import slurm_ranks
from training.options import (
    BatchSize,
    Dataset,
    DeepSpeed,
    LearningRate,
    Model,
    NumTokens,
    Objective,
    Output,
    Seed,
    Task,
    Tokenizer,
)

if TYPE_CHECKING:
    from training.config import ResolvedConfig


def train(
    dataset: Dataset = None,
    output: Output = None,
    task: Task = None,
    objective: Objective = None,
    model: Model = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="DIR",
            help="Start from the weights and the tokenizer of a finished run, or of a Hugging Face folder.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME",
            help="Score column, if it is not named like the task. Repeat it to train on several with equal weights; "
            "data.columns takes other weights.",
            rich_help_panel="Data",
        ),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--mix",
            metavar="DATASET=SHARE[:COLUMN]",
            help="Mix in another labelled dataset, such as code=0.3 for three tenths of all tokens, or "
            "code=0.3:pep8 if its score column has another name. Repeatable.",
            show_default=False,
            rich_help_panel="Data",
        ),
    ] = None,
    num_tokens: NumTokens = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    deepspeed: DeepSpeed = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML with the same settings as --set; options override it."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, such as training.warmup_ratio=0.02; overrides all else."
        ),
    ] = None,
    ranks: Annotated[
        int,
        typer.Option(
            "--ranks",
            min=1,
            metavar="N",
            help="Processes to start; one per GPU if there are GPUs.",
            rich_help_panel="Ranks",
        ),
    ] = 1,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            min=0,
            metavar="N",
            help="How often to restart all ranks if one was killed or hung.",
            rich_help_panel="Ranks",
        ),
    ] = 0,
    step: Annotated[
        int | None,
        typer.Option(
            "--step",
            min=1,
            metavar="N",
            help="With --init-from RUN: start from its checkpoint of this step, with its optimiser, its position in "
            "the data, and its settings where no others are given.",
            show_default=False,
            rich_help_panel="Continuing a run",
        ),
    ] = None,
    from_step: Annotated[
        int | None,
        typer.Option(
            "--from-step",
            min=1,
            metavar="N",
            help="Go back to the run's checkpoint of this step, such as after a spike; what follows it is set aside. "
            "--learning-rate and other settings of the optimiser may change then.",
            show_default=False,
            rich_help_panel="Continuing a run",
        ),
    ] = None,
    skip_batches: Annotated[
        int,
        typer.Option(
            "--skip-batches",
            min=0,
            max=1_000_000_000,
            metavar="N",
            help="With --from-step: leave out this many batches from there on.",
            rich_help_panel="Continuing a run",
        ),
    ] = 0,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Print the memory and time that the run would take, and exit.", rich_help_panel="Plan"
        ),
    ] = False,
    plan_device: Annotated[
        str | None,
        typer.Option(
            "--plan-device",
            metavar="NAME",
            help="With --plan: a GPU, such as H100. (default: this machine)",
            rich_help_panel="Plan",
        ),
    ] = None,
    plan_memory: Annotated[
        float | None,
        typer.Option(
            "--plan-memory",
            min=0.001,
            max=1e6,
            metavar="GB",
            help="With --plan: memory per device.",
            rich_help_panel="Plan",
        ),
    ] = None,
    plan_bandwidth: Annotated[
        float | None,
        typer.Option(
            "--plan-bandwidth",
            min=0.001,
            max=1e6,
            metavar="GB/S",
            help="With --plan: bandwidth between two ranks.",
            rich_help_panel="Plan",
        ),
    ] = None,
    plan_utilisation: Annotated[
        float | None,
        typer.Option(
            "--plan-utilisation",
            min=0.001,
            max=1,
            metavar="X",
            help="With --plan: share of the peak FLOP/s that is reached.",
            rich_help_panel="Plan",
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="PLACE",
            help="Where to start ranks: here, or ray for the nodes of a Ray cluster.",
            rich_help_panel="Ranks",
        ),
    ] = HERE,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="With --on ray, the cluster to join, such as auto or head:6379. (default: a local Ray of its own)",
            show_default=False,
            rich_help_panel="Ranks",
        ),
    ] = None,
    cpus_per_rank: Annotated[
        int | None,
        typer.Option(
            "--cpus-per-rank",
            min=1,
            metavar="N",
            help="Cores that Ray reserves for each rank. (default: 1)",
            show_default=False,
            rich_help_panel="Ranks",
        ),
    ] = None,
    gpus_per_rank: Annotated[
        int | None,
        typer.Option(
            "--gpus-per-rank",
            min=0,
            max=1,
            metavar="N",
            help="GPUs that Ray reserves for each rank, 0 or 1. (default: 1 where the cluster has any)",
            show_default=False,
            rich_help_panel="Ranks",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts of the run as JSON on stdout.")] = False,
) -> None:
    """Pretrain a language model on a labelled dataset.

    The token store is built on first use, and the resolved plan is printed before step 0. The same command resumes a
    stopped run exactly, from its newest checkpoint; SIGTERM, SIGUSR1 and Ctrl-C save one and exit with status 75. With
    more --num-tokens it extends a run whose training.schedule is constant or wsd.
    --ranks starts several processes, with --on ray on a cluster; other launchers work too: torchrun
    --nproc-per-node 2 --no-python phf train labelled ...

    Example: phf train labelled --task toxicity --objective conditional --model tiny --output runs/conditional
    --set training.num_tokens=1e6
    """
    flags = given_settings(train, locals())
    set_up_logs()
    if skip_batches and from_step is None:
        raise UserError("--skip-batches needs --from-step, after which it leaves out batches. Give that too.")
    origin = None if init_from is None or step is None else (init_from, step)
    described = {"device": plan_device, "memory": plan_memory, "bandwidth": plan_bandwidth}
    described["utilisation"] = plan_utilisation
    if not plan and any(value is not None for value in described.values()):
        raise UserError("--plan-device and the other --plan-… options need --plan. Give that too.")
    reserved = {"--address": address, "--cpus-per-rank": cpus_per_rank, "--gpus-per-rank": gpus_per_rank}
    check_place(on, reserved, max_restarts, plan=plan)
    start = {} if init_from is None or step is not None else start_from(init_from, model)
    if step is not None and init_from is None:
        raise UserError("--step needs --init-from, the run whose checkpoint to start from. Give that too.")
    if step is not None and model is not None:
        raise UserError("--init-from determines the model: leave --model out.")
    flags["data"] = {"tokenizer": start.get("name"), **flags.get("data", {}), **columns(column or [])}
    if mix:
        flags["data"]["mixture"] = [mixed_in(each) for each in mix]
    if start:
        flags["model"] = start
    from scorers.terminal import Terminal

    console = Terminal(stderr=as_json)

    def settings(defaults: dict[str, Any] | None = None) -> "ResolvedConfig":
        from training.settings import resolve_config

        base = None
        if init_from is not None and step is not None:
            from training.loop.branch import branch_settings

            base = branch_settings(init_from, output, dataset)
        resolved = resolve_config(config, flags, overrides or [], defaults=defaults or {}, base=base)
        if init_from is not None and step is None:
            check_tokenizer(init_from, resolved)
        if init_from is not None:
            check_held_out(init_from, resolved)
        return resolved

    if plan:
        # Settings that a plan does not need.
        missing = {"output": "", "task": "none", "data": {"dataset": ""}}
        show_plan(settings(missing), ranks, described, console, as_json=as_json)
        return
    launch = Launch(sys.argv[1:], ranks, max_restarts, print_line, None, address, cpus_per_rank or 1, gpus_per_rank)
    if LAUNCHED not in os.environ and (on != HERE or ranks > 1 or max_restarts):
        raise typer.Exit(launch_ranks(on, launch, settings))

    from training.distributed.errors import RankError

    os.environ.update(slurm_ranks(os.environ))
    # Set before torch is imported: it would print a C++ stack when a peer is gone, which phf reports in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    try:
        with stoppable(when=" outside of training"):
            from training.distributed.world import World
            from training.loop.continuation import StartOptions
            from training.loop.train import train as run

            world = World.from_environment()
            facts = run(settings(), console, StartOptions(from_step, skip_batches, origin))
    except UserError as error:
        if os.environ.get("RANK", "0") != "0" and not isinstance(error, RankError):
            # Rank 0 reports it for all.
            raise typer.Exit(error.exit_code) from None
        raise
    if as_json and world.is_main:
        print_json(facts.model_dump(mode="json"))
