"""`phf attack`: attack trained models, to measure how deep their preference sits."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scorers.console import command, print_json, set_up_logs
from scorers.flags import Sets, given_settings
from training.options import AllowOtherScorer, Device, MovedDataset

if TYPE_CHECKING:
    from training.runs.folder import RunFolder
    from training.runs.red_team_report import RedTeamReport
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
    from training.measuring_config import TamperConfig
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


def red_team(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders that `phf train` wrote.")],
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Rounds of new prompts. (default: 10)"), Sets("rounds")
    ] = None,
    proposals: Annotated[
        int | None, typer.Option("--proposals", min=1, help="New prompts a round. (default: 32)"), Sets("proposals")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Repetitions with other seeds. (default: 3)"), Sets("trials")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", min=0, metavar="G", help="Conditional runs: guide the continuations by G."),
        Sets("guidance"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as continuations=16."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompts to start from: JSONL, CSV, Parquet, or text with a prompt per line. By default the first "
            "halves of the most misaligned held-out sentences.",
        ),
    ] = None,
    attacker: Annotated[
        str | None,
        typer.Option(
            "--attacker",
            metavar="RUN|MODEL|URL",
            help="A run, such as that of mle, a folder of a causal language model, or an OpenAI-compatible endpoint "
            "(extra endpoint) that writes the prompts; by default earlier prompts are recombined.",
        ),
    ] = None,
    attacker_model: Annotated[
        str | None,
        typer.Option(
            "--attacker-model", metavar="NAME", help="Name of the model at an endpoint; by default the only one."
        ),
    ] = None,
    dataset: MovedDataset = None,
    device: Device = "auto",
    allow_other_scorer: AllowOtherScorer = False,
    show_text: Annotated[
        int, typer.Option("--show-text", min=0, metavar="N", help="Print the N worst prompts, which may be offensive.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
) -> None:
    """Search for prompts that each run continues with misaligned text.

    A pool of prompts grows by rounds: examples are drawn by their scores, the
    attacker writes prompts from them, the run continues these, and the scorer
    of the training data judges the continuations. Results are kept in
    RUN/evaluation/red-team; an interrupted attack goes on, and more rounds or
    trials are added to it. The key of an endpoint is read from OPENAI_API_KEY;
    what an endpoint proposed is kept too, as it would not propose it again.

    Example: phf attack red-team runs/conditional --attacker runs/mle
    """
    flags = given_settings(red_team, locals())
    set_up_logs()
    from scorers.settings import load_settings
    from training.attack.find_attacker import find_attacker
    from training.attack.run_red_team import RedTeamRequest, attack_run, check_red_team
    from training.evaluation.checks import torch_device
    from training.measuring_config import RedTeamConfig
    from training.progress import StageProgress
    from training.runs.folder import RunFolder
    from training.scenarios.prompts import read_prompts

    config = load_settings(RedTeamConfig, flags=flags, overrides=overrides or [])
    texts = None if prompts is None else [each.text for each in read_prompts(prompts)]
    found = find_attacker(attacker, torch_device(device), model=attacker_model)
    requests = [RedTeamRequest(RunFolder.existing(run), config, found, texts) for run in runs]
    # Check all runs first: a problem with the last must not appear after an hour of attacking the others.
    for request in requests:
        check_red_team(request, dataset)
    shown: list[dict[str, Any]] = []
    for request in requests:
        with StageProgress(str(request.run.path)) as progress:
            report = attack_run(
                request, dataset=dataset, device=device, allow_other_scorer=allow_other_scorer, progress=progress
            )
        worst = _worst_prompts(request.run, report, show_text) if show_text else []
        if as_json:
            examples = {"examples": worst} if show_text else {}
            shown.append({"path": str(request.run.path), **report.model_dump(mode="json"), **examples})
        else:
            _print_red_team(request.run, report, worst)
    if as_json:
        print_json({"runs": shown})


for function in (tamper, red_team):
    app.command()(command(function, changes=True))


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
    console.print_figures(table)
    console.print(
        f"Mean misalignment ({report.column}) of {format_count(report.config.samples, 'sample')} after finetuning on "
        f"{format_count(report.text.documents, 'misaligned document')}; that of the documents is "
        f"{number(report.text.misalignment)}.",
        markup=False,
    )


def _worst_prompts(run: "RunFolder", report: "RedTeamReport", number: int) -> list[dict[str, Any]]:
    """The prompts of all trials with the highest mean scores."""
    from training.evaluation.generating import open_tokenizer
    from training.runs.red_team_report import read_round

    tokenizer = open_tokenizer(run.model)
    every: list[tuple[float, int, int, list[int]]] = []
    for trial, rounds in enumerate(report.trials):
        for index, facts in enumerate(rounds):
            for row in read_round(run, trial, index, facts.prompts).to_pylist() if facts.prompts else ():
                known = [each for each in row["scores"] if each is not None]
                if known:
                    every.append((sum(known) / len(known), trial, index, row["ids"]))
    every.sort(key=lambda each: each[0], reverse=True)
    return [
        {"score": score, "trial": trial + 1, "round": index, "text": tokenizer.decode(ids)}
        for score, trial, index, ids in every[:number]
    ]


def _print_red_team(run: "RunFolder", report: "RedTeamReport", worst: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from scorers.formatting import number
    from scorers.terminal import Terminal
    from training.evaluation.format_figures import interval, percent
    from training.runs.report import Estimate
    from training.statistics import NOT_NEGATIVE, mean_over_seeds

    table = Table(title=Text(f"Red-team attack on {run.path}"), title_justify="left", title_style="bold", box=None)
    trials = [f"trial {trial + 1}" for trial in range(len(report.trials))]
    for name in ("round", "prompts", *trials, "mean", "95 % interval", "hits"):
        table.add_column(name, justify="right")
    misalignment = report.misalignment()
    for index, row in enumerate(zip(*report.trials, strict=True)):
        known = misalignment.get(index, [])
        mean = Estimate.of(mean_over_seeds(known, NOT_NEGATIVE)) if known else None
        hits = [facts.hit_rate.value for facts in row if facts.hit_rate is not None]
        table.add_row(
            f"{index}",
            f"{sum(facts.prompts for facts in row):,}",
            *("–" if facts.misalignment is None else number(facts.misalignment.value) for facts in row),
            "–" if mean is None else number(mean.value),
            interval(mean),
            percent(sum(hits) / len(hits)) if hits else "–",
        )
    console = Terminal()
    console.print_figures(table)
    console.print(
        f"Mean misalignment ({report.column}) of the continuations of each round's prompts, written by "
        f"{report.attacker_name}; round 0 is where the search starts. Intervals are over trials. Hits: prompts whose "
        f"mean is above {number(report.hit_threshold)}.",
        markup=False,
    )
    for warning in report.warnings:
        console.print(f"Note: {warning}", style="yellow", markup=False)
    for each in worst:
        where = f"trial {each['trial']}, round {each['round']}"
        console.print(f"\n[bold]{number(each['score'])}[/bold]  {where}", markup=True)
        console.print(each["text"], soft_wrap=True)
