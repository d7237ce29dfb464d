"""The section about capability of the compare page."""

from typing import Any

import pytest

from scorers.errors import UserError
from tests.training.run_folders import make_run
from training.comparison.capability_section import capability_section
from training.comparison.load import load_comparison
from training.comparison.page import write_comparison
from training.measuring_config import ClassificationConfig
from training.runs.classification_report import ClassificationReport, TrialFacts, classification_path
from training.runs.folder import RunFolder
from training.runs.report import Estimate, run_fingerprint
from training.runs.task_report import TaskFacts, TaskFigure, TaskReport, task_report_path


def write_task(folder: RunFolder, accuracy: float, *, settings: str = "same", **changes: Any) -> None:
    figure = TaskFigure(metric="acc", filter="none", estimate=Estimate(value=accuracy), higher_is_better=True)
    report = TaskReport(
        created_by="phf", run=run_fingerprint(folder), settings=settings, request="mine", prefix=[0], step=1,
        device="cpu", seconds=1.0, tasks=[TaskFacts(name="mine", documents=9, num_fewshot=2, figures=[figure])],
    ).model_copy(update=changes)  # fmt: skip
    path = task_report_path(folder, "mine")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json())


def write_classification(run: RunFolder, *accuracies: float) -> None:
    report = ClassificationReport(
        created_by="phf", run=run_fingerprint(run), name="reviews", texts="abc", config=ClassificationConfig(),
        learning_rate=1e-4, classes=2, train=80, test=20, shortened=0, majority=0.5, prefix=[0], step=1, device="cpu",
        trials=[TrialFacts(accuracy=each, macro_f1=each / 2, loss=0.1) for each in accuracies],
    )  # fmt: skip
    path = classification_path(run, "reviews")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json())


def cells(table: Any) -> list[list[tuple[str, str]]]:
    return [[(cell.text, cell.small) for cell in row.cells] for row in table.rows]


def test_tasks_and_classification_by_group_of_seeds(tmp_path):
    seeds = [make_run(tmp_path / f"mle-{seed}", "mle", training={"seed": seed}) for seed in (1, 2)]
    other = make_run(tmp_path / "awr", "awr", seed=1)
    for run, accuracy in zip(seeds, (0.4, 0.6), strict=True):
        write_task(run, accuracy)
        write_classification(run, accuracy, accuracy)
    write_classification(other, 0.79, 0.81)
    section = capability_section(load_comparison([run.path for run in (*seeds, other)]))
    tasks, classification = section.tables
    assert tasks.columns == ["mine: acc, 2-shot"]
    # By hand: t of one degree of freedom is 12.7062, the standard error 0.1.
    assert cells(tasks) == [[("0.500", "0–1.00")], [("–", "")]]
    assert classification.columns == ["reviews, 20 texts: accuracy", "reviews, 20 texts: macro F1"]
    # One seed keeps the interval over its trials: the standard error is 0.01, and half of it for macro F1.
    assert cells(classification)[1] == [("80.0\xa0%", "67.3–92.7\xa0%"), ("0.400", "0.336–0.464")]
    assert "Capability" in write_comparison(load_comparison([seeds[0].path, other.path]), tmp_path / "out").read_text()


def test_what_was_measured_otherwise_is_another_column(tmp_path):
    runs = [make_run(tmp_path / name, name) for name in ("mle", "awr")]
    write_task(runs[0], 0.4)
    write_task(runs[1], 0.6, settings="other")
    (table,) = capability_section(load_comparison([run.path for run in runs])).tables
    assert table.columns == ["mine: acc, 2-shot", "mine: acc, 2-shot (other settings, 2)"]
    assert [[text for text, _ in row] for row in cells(table)] == [["0.400", "–"], ["–", "0.600"]]


def test_figures_of_an_older_state_are_named_and_left_out(tmp_path):
    runs = [make_run(tmp_path / name, name) for name in ("mle", "awr")]
    assert capability_section(load_comparison([run.path for run in runs])) is None
    write_task(runs[0], 0.4, run="older")
    section = capability_section(load_comparison([run.path for run in runs]))
    assert not section.tables
    assert "older state are left out: mle on mine" in section.note


def test_a_damaged_report_is_named(tmp_path):
    runs = [make_run(tmp_path / name, name) for name in ("mle", "awr")]
    write_task(runs[0], 0.4)
    task_report_path(runs[0], "mine").write_text('{"tasks": [["secret"]]}')
    with pytest.raises(UserError, match=r"mine\.json is damaged") as caught:
        capability_section(load_comparison([run.path for run in runs]))
    assert "secret" not in str(caught.value)
