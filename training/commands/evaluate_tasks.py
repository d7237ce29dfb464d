"""`phf evaluate --tasks`: measure runs on tasks of the lm-evaluation-harness, and print the figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from scorers.console import print_json
from scorers.terminal import Terminal
from training.capability.evaluate_tasks import check_run, evaluate_tasks, fresh_report
from training.capability.harness import check_requests, load_tasks, require_harness
from training.evaluation.checks import torch_device
from training.evaluation.format_figures import interval, number
from training.measuring_config import EvaluationConfig
from training.progress import StageProgress
from training.runs.folder import RunFolder
from training.runs.task_report import TASKS, TaskReport


def measure_runs(
    configs: Mapping[RunFolder, EvaluationConfig],
    names: Sequence[str],
    *,
    num_fewshot: int | None,
    limit: int | None,
    allow_code: bool,
    device: str,
    as_json: bool,
) -> None:
    """Measure each run on each task, after all are checked; stored figures that still hold are only shown.

    Args:
        configs: settings of each run, of which the batch size and the seed are used.
        names: the tasks as given on the command line.
        num_fewshot: solved examples before each document; None for each task's own number.
        limit: maximum number of documents of each task; None for all.
        allow_code: whether task files may run code.
        device: torch device; `auto` for a GPU if there is one.
        as_json: print the reports as JSON.
    """
    require_harness()
    place = torch_device(device)
    for run in configs:
        check_run(run)
    requests = check_requests(names, allow_code=allow_code)
    settings = {
        run: {"num_fewshot": num_fewshot, "limit": limit, "seed": config.seed} for run, config in configs.items()
    }
    stale = {run: [each for each in requests if fresh_report(run, each, settings[run]) is None] for run in configs}
    needed = [each for each in requests if any(each in some for some in stale.values())]
    load_tasks(needed, allow_code=allow_code)
    found: list[dict[str, Any]] = []
    for run, config in configs.items():
        if stale[run]:
            with StageProgress(str(run.path)) as progress:
                evaluate_tasks(
                    run,
                    stale[run],
                    # A task keeps the answers of the run before.
                    load_tasks(stale[run], allow_code=allow_code),
                    settings=settings[run],
                    batch_size=config.batch_size,
                    device=place,
                    allow_code=allow_code,
                    progress=progress,
                )
        reports = [report for each in requests if (report := fresh_report(run, each, settings[run])) is not None]
        if as_json:
            found.append({"path": str(run.path), "reports": [each.model_dump(mode="json") for each in reports]})
        else:
            _print(run, reports)
    if as_json:
        print_json({"runs": found})


def _print(run: RunFolder, reports: Sequence[TaskReport]) -> None:
    after = {each.condition for each in reports} - {None}
    table = Table(
        title=f"{run.path}  (step {reports[0].step:,}{f', after <|{after.pop()}|>' if after else ''})",
        title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("value", "95 % interval", "documents"):
        table.add_column(name, justify="right")
    table.add_column("better")
    for task in (each for report in reports for each in report.tasks):
        for figure in task.figures:
            metric = figure.metric if figure.filter == "none" else f"{figure.metric} ({figure.filter})"
            better = {True: "higher", False: "lower", None: ""}[figure.higher_is_better]
            value, spread = number(figure.estimate.value), interval(figure.estimate)
            table.add_row(task.name, metric, value, spread, f"{task.documents:,}", better)
    console = Terminal()
    console.print()
    console.print_figures(table)
    console.print(f"Figures: {run.evaluation / TASKS}", soft_wrap=True)
