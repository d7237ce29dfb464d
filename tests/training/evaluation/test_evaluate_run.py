"""`phf evaluate` from the command line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import phf
from tests.training.real_runs import make_code_dataset, make_real_run
from training.evaluation import evaluate_run
from training.runs.folder import RunFolder
from training.runs.report import read_report
from training.runs.tables import SAMPLES_NAME

runner = CliRunner()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("cli")
    return make_real_run(make_code_dataset(folder / "labelled", 20), folder / "run", "conditional")


def test_json_has_nothing_but_the_reports_on_stdout(run: RunFolder) -> None:
    result = runner.invoke(
        phf.app, ["evaluate", str(run.path), "--samples", "6", "--set", "leakage_samples=2", "--json"]
    )
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["runs"]
    report = read_report(run)
    assert report is not None
    assert found == {"path": str(run.path), **report.model_dump(mode="json")}
    assert (report.samples.number, report.leakage.number if report.leakage else 0) == (6, 2)


def test_the_table_and_the_samples_that_are_asked_for(run: RunFolder) -> None:
    command = ["evaluate", str(run.path), "--set", "evaluation.num_samples=4", "--set", "leakage_samples=2"]
    result = runner.invoke(phf.app, [*command, "--show-text", "2"])
    assert result.exit_code == 0, result.output
    for expected in ("misalignment (pep8)", "held-out bits per byte", "with the opposite tags", "leakage", "Note:"):
        assert expected in result.output
    assert result.output.count("sample ") >= 2
    quiet = runner.invoke(phf.app, command)
    assert "\nsample " not in quiet.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "There is no folder missing"),
        (["RUN", "--set", "samples=3"], "samples: no such setting; did you mean 'num_samples'"),
        (["RUN", "--set", "top_p=7"], "top_p"),
        (["RUN", "--set", "seed=-1"], "seed: Input should be greater than or equal to 0"),
        (["RUN", "--device", "abacus"], "--device abacus"),
        (["RUN", "--dataset", "nowhere"], "nowhere. Give the --output of a `phf label` run"),
    ],
)
def test_bad_usage_is_one_readable_message(run: RunFolder, arguments: list[str], message: str) -> None:
    result = runner.invoke(phf.app, ["evaluate", *[str(run.path) if each == "RUN" else each for each in arguments]])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_the_last_run_is_looked_at_before_the_first_is_evaluated(run: RunFolder, tmp_path: Path) -> None:
    before = (run.evaluation / "report.json").stat().st_mtime_ns if run.evaluation.exists() else None
    result = runner.invoke(phf.app, ["evaluate", str(run.path), str(tmp_path / "missing")])
    assert result.exit_code == 2
    assert ((run.evaluation / "report.json").stat().st_mtime_ns if run.evaluation.exists() else None) == before


def test_a_dataset_that_is_named_relative_to_another_folder_is_told_apart(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    config = copy.read_config()
    copy.write_config(config.model_copy(update={"data": config.data.model_copy(update={"dataset": "web"})}))
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(phf.app, ["evaluate", str(copy.path)])
    assert result.exit_code == 2
    stderr = " ".join(result.stderr.split())
    assert "was trained on 'web', which is relative to the folder" in stderr
    assert "--dataset" in stderr


@pytest.fixture
def untouched(run: RunFolder) -> Iterator[None]:
    """Nothing is evaluated in the test."""
    before = {path: path.stat().st_mtime_ns for path in run.evaluation.rglob("*")}
    yield
    assert {path: path.stat().st_mtime_ns for path in run.evaluation.rglob("*")} == before


@pytest.mark.parametrize("command", [["evaluate"], ["compare", "--evaluate", "--output", "page"]])
def test_a_run_without_a_model_is_found_before_another_is_evaluated(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    without = shutil.ignore_patterns("evaluation")
    whole, unfinished = (shutil.copytree(run.path, tmp_path / name, ignore=without) for name in ("whole", "unfinished"))
    shutil.rmtree(unfinished / "model")
    result = runner.invoke(phf.app, [*command, str(whole), str(unfinished)])
    assert result.exit_code == 2, result.output
    assert "unfinished has no model yet" in result.output
    assert not (whole / "evaluation").exists()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--column", "pep8", "--scorer", "x=pycodestyle"], "needs --hit-threshold"),
        (["--column", "pep8", "--scorer", "x=column:scores", "--hit-threshold", "0"], "samples have none"),
        (["--column", "pep8", "--column", "style"], "no score column 'style'"),
        (["--hit-threshold", "nan"], "--hit-threshold nan is not a finite number"),
        (["--hit-threshold=-inf"], "--hit-threshold -inf is not a finite number"),
    ],
)
def test_a_judge_that_cannot_be_is_found_before_another_judges(
    run: RunFolder, arguments: list[str], message: str
) -> None:
    result = runner.invoke(phf.app, ["evaluate", str(run.path), *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.output


@pytest.mark.parametrize("judge", [[], ["--scorer", "x=pycodestyle", "--hit-threshold", "0"]])
def test_where_nothing_can_be_written_nothing_is_drawn(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: list[str]
) -> None:
    # A file where the folder would be: permissions do not stop root.
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    (tmp_path / "run" / "evaluation").touch()
    monkeypatch.setattr(evaluate_run, "prepare", None)
    result = runner.invoke(phf.app, ["evaluate", str(tmp_path / "run"), *judge])
    assert result.exit_code == 2, result.output
    assert "Not a directory. An evaluation is stored in the folder of its run" in result.output.replace("\n", " ")


def test_samples_that_are_asked_for_are_in_the_json_too(run: RunFolder) -> None:
    command = ["evaluate", str(run.path), "--samples", "4", "--set", "leakage_samples=2", "--json", "--show-text", "3"]
    result = runner.invoke(phf.app, command)
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["runs"]
    table = pq.read_table(run.evaluation / SAMPLES_NAME).to_pydict()
    scores = [each["score"] for each in found["examples"]]
    assert len(scores) == 3
    assert scores == sorted(table["score"], key=lambda score: (score is None, -(score or 0)))[:3]
    for each in found["examples"]:
        assert (each["score"], each["reason"]) == (table["score"][each["sample"]], table["reason"][each["sample"]])
        assert isinstance(each["text"], str)
