"""Measure a run's exported model on tasks, and keep the figures in its folder."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.dataset.derived import digest
from scorers.errors import UserError
from scorers.fingerprint import library_versions
from training import statistics
from training.capability.harness import PACKAGES, TaskRequest, run_tasks
from training.disk import check_writable, write_atomically, writing
from training.evaluation.checks import check_model
from training.evaluation.generating import choose_tag, open_writer
from training.runs.folder import RunFolder
from training.runs.report import Estimate, run_fingerprint
from training.runs.task_report import TaskFacts, TaskFigure, TaskReport, read_task_report, task_report_path

Progress = Callable[[str, int, int], None]


def check_run(run: RunFolder) -> None:
    """Check that a run can be measured.

    Raises:
        UserError: it has no model yet, or its folder cannot be written.
    """
    check_model(run)
    check_writable(run.evaluation, "Figures are stored in the folder of the run: make that writable, or copy the run.")


def fresh_report(run: RunFolder, request: TaskRequest, settings: dict[str, Any]) -> TaskReport | None:
    """The stored figures of a task; None if there are none, or the run, the task or the settings have changed."""
    report = None
    with contextlib.suppress(UserError):  # damaged figures are measured again
        report = read_task_report(run, request.label)
    if report is None or report.run != run_fingerprint(run) or report.settings != _key(request, settings):
        return None
    return report


def evaluate_tasks(
    run: RunFolder,
    requests: Sequence[TaskRequest],
    tasks: dict[str, list[Any]],
    *,
    settings: dict[str, Any],
    batch_size: int,
    device: str,
    allow_code: bool,
    progress: Progress,
) -> list[TaskReport]:
    """Measure a run on tasks, after its best control token if it has any; store each report as soon as it is there.

    Args:
        run: the run.
        requests: the tasks.
        tasks: from `load_tasks`.
        settings: `num_fewshot`, `limit` and `seed` of `run_tasks`.
        batch_size: rows per forward pass.
        device: torch device.
        allow_code: see `run_tasks`.
        progress: called with a stage, the amount done, and the total.

    Raises:
        UserError: the model cannot be loaded, or a task cannot be run.
        IncompleteError: a report cannot be written.
    """
    from training.capability.language_model import PrefixedModel

    facts, writer = run.read_facts(), open_writer(run.model, device)
    condition = choose_tag(writer.tags, None, 1, writer.condition)
    reports = []
    for request in requests:
        began = time.monotonic()

        def show(what: str, done: int, total: int, label: str = request.label) -> None:
            progress(f"{label}, {what}", done, total)

        model = PrefixedModel(writer, condition, batch_size, show)
        results = run_tasks(model, tasks[request.label], allow_code=allow_code, **settings)
        report = TaskReport(
            created_by=f"phf {library_versions('phf')['phf']}",
            run=run_fingerprint(run),
            settings=_key(request, settings),
            request=request.name,
            prefix=model.prefix,
            condition=condition,
            num_fewshot=settings["num_fewshot"],
            limit=settings["limit"],
            step=facts.step,
            device=device,
            seconds=time.monotonic() - began,
            tasks=task_facts(results),
            versions=library_versions("phf", *PACKAGES),
        )
        path = task_report_path(run, request.label)
        with writing(path):
            write_atomically(path, report.model_dump_json(indent=2) + "\n")
        reports.append(report)
    return reports


def task_facts(results: dict[str, Any]) -> list[TaskFacts]:
    """The tasks and groups of the harness's results, with the figures that are finite numbers."""
    every = {**results["results"], **results.get("groups", {})}
    return [_task(name, values, results) for name, values in every.items()]


def _task(name: str, values: dict[str, Any], results: dict[str, Any]) -> TaskFacts:
    figures = []
    for key, value in values.items():
        metric, _, answers = key.partition(",")
        if not answers or metric.endswith("_stderr") or not _is_finite(value):
            continue
        spread = values.get(f"{metric}_stderr,{answers}")
        error = float(spread) if spread is not None and _is_finite(spread) else None
        low, high = (None, None) if error is None else (value - statistics.Z * error, value + statistics.Z * error)
        higher = results.get("higher_is_better", {}).get(name, {}).get(metric)
        figures.append(
            TaskFigure(
                metric=metric,
                filter=answers,
                estimate=Estimate(value=value, low=low, high=high),
                standard_error=error,
                higher_is_better=higher if isinstance(higher, bool) else None,
            )
        )
    samples, version = results.get("n-samples", {}).get(name, {}), results.get("versions", {}).get(name)
    shots = results.get("n-shot", {}).get(name)
    return TaskFacts(
        name=name,
        version=None if version in (None, "N/A", "Yaml") else str(version),
        documents=samples.get("effective", values.get("sample_len", 0)),
        documents_in_all=samples.get("original"),
        num_fewshot=shots if isinstance(shots, int) else None,
        figures=figures,
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _key(request: TaskRequest, settings: dict[str, Any]) -> str:
    return digest([request.fingerprint, settings, library_versions(*PACKAGES)])
