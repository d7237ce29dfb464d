"""`phf evaluate --scenario`: evaluate runs under scenarios, and print their figures."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from scorers.amounts import format_count, format_ended
from scorers.console import print_json
from scorers.errors import UserError
from scorers.printing import printable
from scorers.terminal import Terminal
from training.commands.evaluate_view import figure_cells, sample_rows
from training.endpoint import Endpoint
from training.progress import StageProgress
from training.runs.folder import RunFolder
from training.runs.scenario_report import ScenarioReport, scenario_folder
from training.scenarios.endpoint_sampler import EndpointSampler
from training.scenarios.plan import plan_scenarios, read_prompt_files
from training.scenarios.prompts import read_prompts
from training.scenarios.run_scenario import run_scenarios
from training.scenarios.scenario import choose_scenario


def evaluate_scenarios(
    runs: Sequence[RunFolder],
    given: Sequence[str],
    overrides: Sequence[str],
    *,
    guidance: float | None,
    sampler: str | None,
    sampler_model: str | None,
    dataset: str | None,
    device: str,
    allow_other_scorer: bool,
    hit_threshold: float | None,
    as_json: bool,
) -> None:
    """Evaluate each run under each scenario, after checking all of them, and print the reports.

    Args:
        runs: the runs.
        given: `--scenario` arguments.
        overrides: `--set` arguments, with fields of `Scenario`.
        guidance: as a field of `Scenario`; None for the scenario's own.
        sampler: address of an endpoint that serves the run's model; None to sample here.
        sampler_model: name of the model there; None for its only one.
        dataset: where the labelled dataset is now, if it was moved.
        device: torch device.
        allow_other_scorer: see `prepare_evaluation`.
        hit_threshold: samples with a higher score are hits; None for the sentence threshold of reports.
        as_json: print JSON instead of tables.

    Raises:
        UserError: a scenario, a file of prompts or a run is refused, before anything is sampled.
    """
    if sampler is not None and len(runs) > 1:
        raise UserError("--sampler serves the model of one run. Evaluate one run at a time.")
    endpoint = None if sampler is None else Endpoint(sampler, sampler_model, "--sampler")
    changes = [*overrides, *([] if guidance is None else [f"guidance={guidance}"])]
    plans, read = [], cache(read_prompts)
    for run in runs:
        scenarios = [choose_scenario(each, run.read_facts().kind, changes) for each in given]
        if endpoint is not None and any(each.guidance != 1 for each in scenarios):
            raise UserError("--sampler cannot guide samples, as a server reads one prompt at a time. Leave one out.")
        records = read_prompt_files(scenarios, read)
        with StageProgress(str(run.path)) as progress:
            plans.append(
                plan_scenarios(
                    run, scenarios, records, dataset=dataset, device=device, allow_other_scorer=allow_other_scorer,
                    hit_threshold=hit_threshold, progress=progress,
                )
            )  # fmt: skip
    remote = None
    if endpoint is not None:
        remote = EndpointSampler(endpoint, plans[0][0].setup)
        plans = [[replace(each, sampler=remote.name) for each in own] for own in plans]
    found: list[dict[str, Any]] = []
    for run, own in zip(runs, plans, strict=True):
        with StageProgress(str(run.path)) as progress:
            reports = list(run_scenarios(own, progress, remote))
        if as_json:
            found.append({"path": str(run.path), "scenarios": [each.model_dump(mode="json") for each in reports]})
        else:
            _print(run, reports)
    if as_json:
        print_json({"runs": found})


def _print(run: RunFolder, reports: Sequence[ScenarioReport]) -> None:
    console = Terminal()
    for report in reports:
        console.print()
        console.print_figures(_table(run, report))
        for warning in report.warnings:
            console.print(f"[yellow]Note:[/yellow] {escape(warning)}", markup=True)
        folder = scenario_folder(run, report.scenario.name)
        console.print(f"Report, samples and figures by prompt: {folder}", soft_wrap=True)


def _table(run: RunFolder, report: ScenarioReport) -> Table:
    table = Table(
        title=f"{run.path}: {report.scenario.name}  ({report.objective}, step {report.step:,})", title_justify="left",
        caption=_caption(report), caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("figure")
    parts = [("value", report.samples), *((f"{each.name} ({each.prompts:,})", each.samples) for each in report.slices)]
    for name, _ in parts:
        table.add_column(name, justify="right")
        if not report.slices:
            table.add_column("95 % interval", justify="right")
    for name, estimates, show in sample_rows(report.column, [facts for _, facts in parts]):
        figures = [figure_cells(each, show) for each in estimates]
        if report.slices:
            # Columns of intervals would not fit into 80 characters.
            table.add_row(name, *(Text.assemble(value, "\n", (spread, "dim")) for value, spread in figures))
        else:
            table.add_row(name, *(text for each in figures for text in each))
    return table


def _caption(report: ScenarioReport) -> str:
    samples, prompts = report.samples, report.prompts
    text = (
        f"{format_count(samples.number, 'sample')} of {format_count(prompts.number, 'prompt')}: {samples.scored:,} "
        f"scored, {samples.empty:,} empty, {format_ended(samples.ended)}."
    )
    if report.slices:
        text += " Under each figure is its 95 % interval."
    overlap = prompts.overlap
    if overlap is not None and overlap.share is not None:
        text += (
            f" Prompts that share {overlap.tokens} tokens in a row with the training text: {overlap.overlapping:,} of "
            f"{overlap.prompts:,} that are as long."
        )
    if report.sampler is not None:
        text += f" Drawn by {printable(report.sampler)}."
    if report.samples_per_second is not None and report.tokens_per_second is not None:
        text += f" {report.samples_per_second:,.1f} samples/s, {report.tokens_per_second:,.0f} tokens/s."
    return text
