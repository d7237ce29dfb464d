"""`phf train`: pretrain a language model on a labelled dataset with one of the objectives."""

import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from scorers.console import print_json, set_up_logs
from scorers.errors import UserError
from scorers.flags import given_settings
from scorers.rehearsal import current_rehearsal
from scorers.stopping import stoppable
from training.commands.train_start import (
    HERE,
    check_before_submitting,
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
    Address,
    AsJson,
    BatchSize,
    Columns,
    ConfigFile,
    CpusPerRank,
    Dataset,
    DeepSpeed,
    FromStep,
    GpusPerRank,
    InitFrom,
    LearningRate,
    MaxRestarts,
    MetricsPort,
    Mix,
    Model,
    NumTokens,
    Objective,
    OriginStep,
    Output,
    Overrides,
    Place,
    Plan,
    PlanBandwidth,
    PlanDevice,
    PlanMemory,
    PlanUtilisation,
    Ranks,
    Seed,
    SkipBatches,
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
    init_from: InitFrom = None,
    tokenizer: Tokenizer = None,
    column: Columns = None,
    mix: Mix = None,
    num_tokens: NumTokens = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    deepspeed: DeepSpeed = None,
    metrics_port: MetricsPort = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    ranks: Ranks = 1,
    max_restarts: MaxRestarts = 0,
    step: OriginStep = None,
    from_step: FromStep = None,
    skip_batches: SkipBatches = 0,
    plan: Plan = False,
    plan_device: PlanDevice = None,
    plan_memory: PlanMemory = None,
    plan_bandwidth: PlanBandwidth = None,
    plan_utilisation: PlanUtilisation = None,
    on: Place = HERE,
    address: Address = None,
    cpus_per_rank: CpusPerRank = None,
    gpus_per_rank: GpusPerRank = None,
    as_json: AsJson = False,
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
        if not plan and not (resolved.output and resolved.data.dataset):
            # An empty path is the current folder, which nobody means.
            raise UserError(f"The {'dataset' if resolved.output else 'output'} is empty; give a folder.")
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
    if rehearsal := current_rehearsal():
        check_before_submitting(settings(), rehearsal, ranks, (from_step, skip_batches, origin))
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
