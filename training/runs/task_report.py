"""The format of a run's figures on a task of the lm-evaluation-harness (`evaluation/tasks/NAME.json`)."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat

from scorers.stored import Count
from training.runs.folder import RunFolder
from training.runs.report import Estimate, Part, read_stored_report

TASKS = "tasks"


class TaskFigure(Part):
    """A metric of a task.

    Attributes:
        metric: its name, as the harness gives it.
        filter: the filter of the answers that it is over; `none` for none.
        estimate: value and 95 % interval, 1.96 standard errors to each side; no interval without a standard error.
        standard_error: None if the harness has none for this metric.
        higher_is_better: None if the task does not say.
    """

    metric: str
    filter: str
    estimate: Estimate
    standard_error: FiniteFloat | None = None
    higher_is_better: bool | None = None


class TaskFacts(Part):
    """A task, or a group of tasks, with its figures.

    Attributes:
        name: as the harness names it.
        version: of the task, if it has one.
        documents: number of documents that were measured.
        documents_in_all: those of the task; None for a group.
        num_fewshot: solved examples before each document; None for a group of several.
        figures: its metrics.
    """

    name: str
    version: str | None = None
    documents: Count
    documents_in_all: Count | None = None
    num_fewshot: Count | None = None
    figures: list[TaskFigure]


class TaskReport(Part):
    """The figures of one requested task, group or file.

    Attributes:
        schema_version: version of this format.
        created_by: distribution and version.
        run: fingerprint of the run's facts (`run.json`) when it was measured.
        settings: fingerprint of the task, its files and the settings.
        request: the task as it was requested.
        prefix: token ids before every text: the first token of documents, and the control token if there is one.
        condition: name of that control token; None for a run without.
        num_fewshot: requested number of solved examples; None for the task's own.
        limit: maximum number of documents of each task; None for all.
        step: optimiser steps that the model was trained for.
        device: torch device.
        seconds: duration.
        tasks: the tasks and groups, in the order of the harness.
        versions: versions of the relevant libraries.
    """

    schema_version: Literal[1] = 1
    created_by: str
    run: str
    settings: str
    request: str
    prefix: list[Count]
    condition: str | None = None
    num_fewshot: Count | None = None
    limit: Count | None = None
    step: Count
    device: str
    seconds: float
    tasks: list[TaskFacts]
    versions: dict[str, str] = Field(default_factory=dict)


def task_report_path(run: RunFolder, name: str) -> Path:
    """The file of the report of a task; characters that a file name should not have are replaced."""
    return run.evaluation / TASKS / f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', name)[:150]}.json"


def read_task_report(run: RunFolder, name: str) -> TaskReport | None:
    """The report of a task; None if there is none.

    Raises:
        UserError: it is damaged or of another version.
    """
    return read_stored_report(TaskReport, task_report_path(run, name), run)
