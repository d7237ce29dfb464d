import json

import typer
from typer.testing import CliRunner

from scorers.cli import app
from scorers.registry import KINDS


def test_the_table_shows_what_runs_here_and_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["scorers"])
    assert result.exit_code == 0, result.output
    for kind in KINDS:
        assert kind in result.output
    assert "detoxify: The weights of Detoxify's 'unbiased' are not on this machine" in " ".join(result.output.split())


def test_json_holds_the_same_facts(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    facts = {each["kind"]: each for each in json.loads(CliRunner().invoke(app, ["scorers", "--json"]).stdout)}
    assert list(facts) == list(KINDS)
    assert facts["pycodestyle"] == {
        "kind": "pycodestyle",
        "columns": ["pep8"],
        "score": "PEP 8 violations on a line divided by its characters, the terminator included.",
        "options": {"max_line_length": 79, "ignore": None},
        "runs_on_gpu": False,
        "ready": True,
        "missing": None,
    }
    assert facts["detoxify"]["ready"] is False
    assert facts["detoxify"]["runs_on_gpu"] is True


def test_the_help_reads_well():
    outer = typer.Typer()
    outer.add_typer(app)
    result = CliRunner().invoke(outer, ["--help"])
    assert "List the kinds of scorers" in result.output
