"""What `phf label` refuses before it starts anything, and its messages."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from phf import app
from scorers import registry
from tests.pipeline import probe
from tests.pipeline.probe import ProbeScorer


@pytest.fixture(autouse=True)
def _probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    probe.install(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pipeline.labelling.run.ray_cluster", started)
    monkeypatch.setattr("pipeline.labelling.run.LocalBackend", started)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small corpus and nothing else."""
    folder = tmp_path / "work"
    (folder / "corpus").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "corpus" / "a.jsonl").write_text(json.dumps({"id": "1", "text": "One. Two."}) + "\n")
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str, output: str = "out") -> Result:
    return CliRunner().invoke(app, ["label", *arguments, "--output", output], catch_exceptions=False)


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    message = " ".join(result.stderr.split())
    for part in parts:
        assert part in message
    assert "Traceback" not in result.output
    assert not Path("out").exists(), "something was written"


PROBE = ("--scorer", "probe")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("missing.jsonl", *PROBE), ("missing.jsonl",)),
        (("corpus", "missing", *PROBE), ("missing",)),
        (("empty", *PROBE), ("empty",)),
        (("corpus/*.txt", *PROBE), ("corpus/*.txt",)),
        (("corpus",), ("--scorer toxicity=linear",)),
        (PROBE, ("inputs", "required")),
        (("corpus", *PROBE, "--text-field", "body"), ("body", "text")),
        (("corpus", "--scorer", "colour=nosuch"), ("nosuch", "probe")),
        (("corpus", "--scorer", "nosuch"), ("nosuch", "KIND")),
        (("corpus", "--scorer", "Probe=probe"), ("Probe", "lower case")),
        (("corpus", "--scorer", "probe="), ("probe=",)),
        (("corpus", "--scorer", "probe:1"), ("probe:1", "column")),
        (("corpus", "--scorer", "text=probe"), ("'text'", "my_text=probe")),
        (("corpus", "--scorer", "probe=probe,colour=1"), ("colour", "delay_s")),
        (("corpus", "--scorer", "probe=probe:slow"), ("delay_s", "slow")),
        (("corpus", *PROBE, *PROBE), ("given twice",)),
        (("corpus", *PROBE, "--threshold", "pii=0"), ("'pii'", "--scorer pii", "probe")),
        (("corpus", *PROBE, "--threshold", "probe"), ("--threshold probe", "COLUMN=VALUE")),
        (("corpus", *PROBE, "--threshold", "probe=high"), ("probe=high", "p50")),
        (("corpus", *PROBE, "--threshold", "probe=p101"), ("p101",)),
        (("corpus", *PROBE, "--threshold", "probe=-1"), ("-1",)),
        (("corpus", *PROBE, "--threshold", "probe=1", "--threshold", "probe=2"), ("twice",)),
        (("corpus", *PROBE, "--unit-size", "many"), ("unit_size", "many")),
        (("corpus", *PROBE, "--unit-size", "0"), ("unit_size",)),
        (("corpus", *PROBE, "--set", "colour=1"), ("colour", "no such setting")),
        (("corpus", *PROBE, "--set", "execution.worker=1"), ("execution.worker", "'workers'")),
        (("corpus", *PROBE, "--set", "unit_size"), ("unit_size", "KEY=VALUE")),
        (("corpus", *PROBE, "--set", "execution.pools.probe=cuda"), ("execution.pools.probe", "CPU only")),
        (("corpus", *PROBE, "--set", "execution.pools.cpu=cuda"), ("execution.pools.cpu.device", "pools.probe=cuda")),
        (("corpus", *PROBE, "--set", "execution.pools.pii=cuda"), ("execution.pools names 'pii'", "probe")),
        (("corpus", *PROBE, "--set", "execution.deadlines.pii=3"), ("execution.deadlines names 'pii'", "probe")),
        (("corpus", *PROBE, "--set", "execution.deadlines.probe=0"), ("execution.deadlines.probe", "greater than 0")),
        (("corpus", *PROBE, "--set", "execution.pools.probe={min: 3, max: 2}"), ("pools.probe", "max (2) is less")),
        (("corpus", *PROBE, "--set", "execution.pools.probe.gpus=1.5"), ("pools.probe", "gpus", "whole number")),
        (("corpus", *PROBE, "--set", "execution.pools.probe.gpu=1"), ("execution.pools.probe.gpu", "no such setting")),
        (
            ("corpus", *PROBE, "--workers", "2", "--set", "execution.pools.cpu.max=2"),
            ("execution.workers or execution.pools.cpu.min", "not both"),
        ),
        (("corpus", *PROBE, "--config", "missing.yaml"), ("missing.yaml",)),
        (("corpus", *PROBE, "--workers", "-1"), ("--workers",)),
        (("corpus", *PROBE, "--max-quarantined", "0.01"), ("execution.max_quarantined", "0.1%", "given: '0.01'")),
        (("corpus", *PROBE, "--max-quarantined", "-1"), ("execution.max_quarantined", "0.1%")),
        (("corpus", *PROBE, "--max-quarantined", "101%"), ("execution.max_quarantined", "0.1%")),
        (("corpus", *PROBE, "--set", "execution.max_quarantined=0.5"), ("execution.max_quarantined", "0.5")),
        (("corpus", *PROBE, "--max-document-size", "big"), ("max_document_size", "big")),
        (("corpus", *PROBE, "--large-documents", "drop"), ("--large-documents", "split")),
        (("corpus", *PROBE, "--address", "127.0.0.1:1"), ("127.0.0.1:1", "refused")),
        (("corpus", *PROBE, "--address", "ray://127.0.0.1:1"), ("ray://127.0.0.1:1", "refused")),
    ],
)
def test_invalid_options_are_refused_by_name_before_any_work(
    folder: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refused(run(*arguments), *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("unit_sice: 1MB", ("unit_sice", "unit_size")),
        ("execution:\n  attempts: often", ("execution.attempts", "often")),
        ("- a list", ("mapping",)),
        ("unit_size: [", ("line 1", "YAML")),
        ("scorers:\n  probe: {model: x}", ("scorers.probe.kind",)),
        ("scorers: probe", ("scorers",)),
        ("execution: {max_quarantined: true}", ("execution.max_quarantined", "0.1%")),
        ("execution: {max_quarantined: 1.0}", ("execution.max_quarantined", "0.1%")),
    ],
)
def test_an_invalid_config_is_refused_by_key(folder: Path, content: str, parts: tuple[str, ...]) -> None:
    Path("c.yaml").write_text(content)
    flags = () if "scorers" in content else PROBE
    refused(run("corpus", "--config", "c.yaml", *flags), *parts)


def test_a_scorer_that_cannot_run_here_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scorers.errors import UserError

    def __init__(self: object, *_: object) -> None:
        raise UserError("The spaCy model is not installed: pip install it.")

    monkeypatch.setattr(ProbeScorer, "__init__", __init__)
    refused(run("corpus", *PROBE), "The spaCy model is not installed: pip install it.")


def test_an_output_that_holds_something_else_is_refused(folder: Path) -> None:
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.jpg").touch()
    result = run("corpus", *PROBE, output="photos")
    refused(result, "photos", "cat.jpg", "--output")
    assert [path.name for path in (folder / "photos").iterdir()] == ["cat.jpg"]


def test_an_output_that_is_a_file_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    refused(run("corpus", *PROBE, output="file"), "file", "folder")


def test_an_output_that_cannot_be_written_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    refused(run("corpus", *PROBE, output="file/out"), "cannot be written")


def test_an_unknown_location_is_refused(folder: Path) -> None:
    refused(run("corpus", *PROBE, output="ftp://host/x"), "ftp://", "s3://")


def test_a_missing_output_is_requested(folder: Path) -> None:
    refused(CliRunner().invoke(app, ["label", "corpus", *PROBE]), "output", "required")


def test_a_damaged_job_is_refused(folder: Path) -> None:
    (folder / "labelled" / "job").mkdir(parents=True)
    (folder / "labelled" / "job" / "config.json").write_text("{")
    refused(run("corpus", *PROBE, output="labelled"), "config.json", "damaged")


def test_flags_win_over_the_file_and_set_over_both(folder: Path) -> None:
    from pipeline.options import label_config

    Path("c.yaml").write_text(
        "inputs: [corpus]\noutput: there\nunit_size: 1MB\nthresholds: {probe: p10, other: 1}\n"
        "scorers: {probe: {kind: probe, delay_s: 3}, other: 'probe:2'}\n"
        "execution: {attempts: 7, workers: 1, max_quarantined: 0.5%}\n"
    )
    config = label_config(
        {
            "max_document_size": "2MiB",
            "large_documents": "quarantine",
            "execution": {"workers": 3, "max_quarantined": "2%"},
        },
        scorers=["probe=probe"],
        thresholds=["probe=p20"],
        config=Path("c.yaml"),
        overrides=["scorers.probe.version=2", "execution.attempts=9", "thresholds.probe=0.5"],
    )
    assert (config.inputs, config.output, config.unit_size) == (["corpus"], "there", 1_000_000)
    # A flag replaces the whole scorer of the file, so `delay_s` is gone.
    assert config.scorers["probe"].options == {"version": 2}
    assert config.scorers["other"].kind == "probe"
    assert config.scorers["other"].options == {"delay_s": "2"}
    assert config.thresholds == {"probe": 0.5, "other": 1}
    assert (config.execution.workers, config.execution.attempts) == (3, 9)
    assert config.execution.max_quarantined == "2%"
    assert (config.max_document_size, config.large_documents) == (2 * 1024 * 1024, "quarantine")
    assert config.semantic()["large_documents"] == "quarantine", "a change of it is refused by resume"
