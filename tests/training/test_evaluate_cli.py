"""`phf evaluate` as it is typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import phf
from tests.training.real_runs import make_code_dataset, make_real_run
from training.evaluation.report import read_report
from training.run.folder import RunFolder

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
