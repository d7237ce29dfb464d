"""`phf match`: move a finished run to targets for its samples."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from scorers.console import print_json, set_up_logs
from scorers.errors import UserError
from scorers.flags import Sets, given_settings
from scorers.stopping import stoppable
from training.commands.train_start import HERE, launch_ranks, print_line
from training.distributed.launch import LAUNCHED, Launch
from training.distributed.slurm_environment import slurm_ranks
from training.options import AllowOtherScorer, ConfigFile, MaxRestarts, MovedDataset, Overrides, Ranks

if TYPE_CHECKING:
    from training.matching.config import MatchConfig
    from training.runs.matching_report import MatchingReport


def match(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A finished run; it is only read.", show_default=False),
        Sets("run"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the new run. An existing one resumes."),
        Sets("output"),
    ] = None,
    constraints: Annotated[
        list[str] | None,
        typer.Option(
            "--constraint",
            metavar="COLUMN<=T:SHARE",
            help="Share of samples whose sentences all have scores of at most T (1: every sample), or COLUMN:MEAN; "
            "repeatable.",
        ),
        Sets("constraints"),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", metavar="FILE|held-out", help="Prompts to continue; by default samples are whole texts."
        ),
        Sets("prompts"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="NAME", help="dpg or reinforce. (default: dpg)", show_default=False),
        Sets("method"),
    ] = None,
    divergence: Annotated[
        str | None,
        typer.Option(
            "--divergence", metavar="NAME", help="kl, reverse-kl, js or tv. (default: kl)", show_default=False
        ),
        Sets("divergence"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, metavar="N", help="Optimiser steps. (default: 200)", show_default=False),
        Sets("steps"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Samples per step. (default: 256)", show_default=False),
        Sets("training.batch_size"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="X",
            help="By default a thirtieth of that of the run's training.",
            show_default=False,
        ),
        Sets("training.learning_rate"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Seed of the samples.", show_default=False),
        Sets("training.seed"),
    ] = None,
    scorers: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            metavar="NAME=KIND",
            help="A scorer that made no column of the dataset, written as for `phf label`; repeatable.",
        ),
        Sets("scorers"),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    dataset: MovedDataset = None,
    allow_other_scorer: AllowOtherScorer = False,
    ranks: Ranks = 1,
    max_restarts: MaxRestarts = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Move a finished run to targets for its samples, at the least KL from what it was.

    The model is trained on samples of its own, weighed by how likely the target makes them (distribution matching). The
    result is a run like any other: evaluate, compare, sample and export it. The same command resumes a stopped one
    exactly; more --steps extend it.

    Example: phf match runs/mle --constraint 'toxicity<=0.5: 0.99' --output runs/matched
    """
    flags = given_settings(match, locals())
    set_up_logs()
    from scorers.terminal import Terminal

    console = Terminal(stderr=as_json)

    def settings() -> "MatchConfig":
        from scorers.settings import load_settings, parse_override, read_yaml
        from training.matching.config import MatchConfig
        from training.runs.folder import RunFolder

        given = None if config is None else read_yaml(config)
        named = [given or {}, flags, *map(parse_override, overrides or [])]
        source = next((each["run"] for each in reversed(named) if isinstance(each.get("run"), str)), None)
        if not source:
            raise UserError("There is no run to match. Give its folder: phf match RUN.")
        then = RunFolder.existing(source).read_config().training
        defaults = {"training": {"learning_rate": then.learning_rate / 30, "precision": then.precision}}
        return load_settings(MatchConfig, file=given, flags=flags, overrides=overrides or [], defaults=defaults)

    if LAUNCHED not in os.environ and (ranks > 1 or max_restarts):
        raise typer.Exit(launch_ranks(HERE, Launch(sys.argv[1:], ranks, max_restarts, print_line)))

    from training.distributed.errors import RankError

    os.environ.update(slurm_ranks(os.environ))
    # Set before torch is imported: it would print a C++ stack when a peer is gone, which phf reports in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    try:
        with stoppable(when=" outside of training"):
            from training.distributed.world import World
            from training.matching.prepare import check_request
            from training.matching.run import match as run_match

            world = World.from_environment()
            request = check_request(settings(), world.size, dataset=dataset, allow_other_scorer=allow_other_scorer)
            _, report = run_match(request, console)
    except UserError as error:
        if os.environ.get("RANK", "0") != "0" and not isinstance(error, RankError):
            # Rank 0 reports it for all.
            raise typer.Exit(error.exit_code) from None
        raise
    if not world.is_main:
        return
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print_report(report)


def _print_report(report: "MatchingReport") -> None:
    from rich.table import Table
    from rich.text import Text

    from scorers.formatting import number
    from scorers.terminal import Terminal
    from training.evaluation.format_figures import interval

    table = Table(title=Text("Targets and samples"), title_justify="left", title_style="bold", box=None)
    for name in ("constraint", "wanted", "before", "reached", "95 % interval"):
        table.add_column(name, justify="left" if name == "constraint" else "right")
    for each in report.constraints:
        table.add_row(
            Text(each.constraint), number(each.wanted), number(each.before), number(each.reached.value),
            interval(each.reached),
        )  # fmt: skip
    console = Terminal()
    console.print_figures(table)
    console.print(
        f"{report.samples:,} samples of the finished model, {report.unscored:,} of them without scores. KL from the "
        f"run before: {number(report.kl_prior.value)} nats per sample ({interval(report.kl_prior)}). From the target: "
        f"KL {number(report.kl_target)}, total variation {number(report.tvd)}. As samples of the target they are worth "
        f"{report.effective:.0%} of their number.",
        markup=False,
        soft_wrap=True,
    )
