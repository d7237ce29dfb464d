"""The structured log of a run: its content, and failures to write it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipeline.corpus.records import Quarantined
from pipeline.job.unit_records import UnitRecord
from pipeline.labelling.monitoring.log_file import LogFile
from pipeline.labelling.monitoring.logs import RunLog, run_log, without_secrets
from pipeline.labelling.scheduler.events import (
    UnitCommitted,
    UnitFailed,
    UnitGivenUp,
    UnitSent,
    UnitStaged,
    WorkerHired,
    WorkerLost,
    WorkerReady,
)
from scorers.errors import IncompleteError, UserError
from tests.pipeline.corpora import make_config
from tests.pipeline.label_job import ROOT, Labelling
from tests.pipeline.simulation import PART, part_of, units


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_has_a_time_an_event_and_a_run(tmp_path: Path) -> None:
    structlog.reset_defaults()
    config = make_config(tmp_path / "in.jsonl", output=str(tmp_path / "out"), execution={"log": str(tmp_path / "log")})
    unit = units(1)[0]
    record = UnitRecord(
        unit=0,
        epoch=3,
        parts=[PART],
        records=7,
        empty=1,
        sentences=12,
        bytes_text=99,
        quarantined=[Quarantined("a", 1, "not-json"), Quarantined("a", 2, "deadline"), Quarantined("a", 3, "not-json")],
    )
    with pytest.raises(IncompleteError), run_log(config) as log:
        log.claimed(3)
        log(WorkerHired(4, "cpu"))
        log(WorkerReady(4, "cpu", "node-1"))
        log(UnitSent(unit, "cpu", 4, 1, isolated=False))
        log(UnitFailed(unit, "cpu", 4, 1, "ValueError at x.py:1"))
        log(UnitSent(unit, "cpu", 4, 2, isolated=True))
        log(WorkerLost(4, "cpu", "its process died", unit=unit, counted=True))
        log(UnitStaged(unit, "cpu", 5, 3, part_of(unit, "cpu"), 1.25))
        log(UnitCommitted(unit, record, [part_of(unit, "cpu")]))
        log(UnitGivenUp(unit, "gpu", 3, "its process died"))
        log.stopping(10)
        raise IncompleteError("1 unit could not be labelled.")
    written = lines(tmp_path / "log")
    assert {tuple(line)[:5] for line in written} == {("timestamp", "level", "event", "run", "epoch")}
    assert {line["run"] for line in written} == {log.run}
    assert [line["epoch"] for line in written] == [None, *[3] * (len(written) - 1)]
    assert all(line["timestamp"].endswith("Z") for line in written)
    assert [line["timestamp"] for line in written] == sorted(line["timestamp"] for line in written)
    by_event = {line["event"]: line for line in written}
    assert by_event["run-started"]["config"]["inputs"] == [str(tmp_path / "in.jsonl")]
    assert by_event["run-started"]["versions"]["ray"]
    assert by_event["worker-lost"]["counted"] is True
    assert by_event["unit-isolated"]["attempt"] == 2
    assert by_event["unit-staged"]["seconds"] == 1.25
    assert by_event["unit-committed"]["quarantined"] == {"not-json": 2, "deadline": 1}
    assert by_event["unit-given-up"]["level"] == "error"
    ended = by_event["run-ended"]
    assert (ended["state"], ended["exit_code"], ended["error"]) == ("incomplete", 4, "1 unit could not be labelled.")
    assert not structlog.is_configured(), "that belongs to whoever uses phf as a library"


def test_an_unexpected_error_is_logged_without_its_message(tmp_path: Path) -> None:
    config = make_config(tmp_path, output=str(tmp_path / "out"), execution={"log": str(tmp_path / "log")})
    with pytest.raises(ValueError), run_log(config):
        raise ValueError("text of the corpus")
    ended = lines(tmp_path / "log")[-1]
    assert (ended["state"], ended["exit_code"]) == ("failed", 70)
    assert ended["error"].startswith("ValueError at test_logs.py")


def test_a_later_run_appends_to_the_same_file(tmp_path: Path) -> None:
    config = make_config(tmp_path, output=str(tmp_path / "out"), execution={"log": str(tmp_path / "log")})
    for _ in range(2):
        with run_log(config):
            pass
    written = lines(tmp_path / "log")
    assert [line["event"] for line in written] == ["run-started", "run-ended"] * 2
    assert len({line["run"] for line in written}) == 2


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    notes: list[str] = []
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        file = LogFile(descriptor, "run.log", notes.append)
        log = RunLog(file)
        for number in range(3):
            log(WorkerHired(number, "cpu"))
    finally:
        os.close(descriptor)
    assert file.lost == 3
    assert notes == [
        "Cannot write the log run.log: No space left on device. Labelling continues; log lines are lost until it can "
        "be written again."
    ]


def test_a_line_that_was_cut_does_not_break_the_next_one(tmp_path: Path) -> None:
    # A limit on the file size has the same effect as a full disk: a partial write, then errors.
    code = (
        "import os, resource, signal, sys\n"
        "from pipeline.labelling.monitoring.log_file import LogFile\n"
        "from pipeline.labelling.monitoring.logs import RunLog\n"
        "from pipeline.labelling.scheduler.events import WorkerHired\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "log = RunLog(LogFile(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT), 'x'))\n"
        "log(WorkerHired(1, 'cpu'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(sys.argv[1]) + 20, resource.RLIM_INFINITY))\n"
        "log(WorkerHired(2, 'cpu')); log(WorkerHired(3, 'cpu'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "log(WorkerHired(4, 'cpu')); log(WorkerHired(5, 'cpu'))\n"
    )
    path = tmp_path / "log"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
    first, torn, *rest = path.read_text().splitlines()
    assert json.loads(first)["worker"] == 1
    with pytest.raises(ValueError):
        json.loads(torn)
    assert [json.loads(line)["worker"] for line in rest] == [4, 5]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("s3://key:secret@bucket/a?region=x&token=y", "s3://***@bucket/a?***"),
        ("s3://bucket/a*.jsonl", "s3://bucket/a*.jsonl"),
        ("https://user@host", "https://***@host"),
        ("/local/@folder", "/local/@folder"),
        ({"a": [{"hf_token": "x"}], "threads": 1}, {"a": [{"hf_token": "***"}], "threads": 1}),
        (
            {"batch_tokens": 5, "api_key": "x", "text_field": "key"},
            {"batch_tokens": 5, "api_key": "***", "text_field": "key"},
        ),
    ],
)
def test_no_secret_of_the_settings_is_shown(value: Any, shown: Any) -> None:
    assert without_secrets(value) == shown


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Labelling:
    made = Labelling(tmp_path_factory.mktemp("logs"))
    made.write(["One. Two.", "Three."])
    with (made.corpus / "corpus.jsonl").open("a") as file:
        file.write("no JSON\n")
    return made


def test_stderr_contains_only_the_log_if_it_is_sent_there(made: Labelling) -> None:
    result = made.run_without_ray("--log", "-")
    assert result.returncode == 3
    written = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["event"] for line in written if line["event"] not in {"step", "step-progress"}] == [
        "run-started",
        "config-resolved",
        "epoch-claimed",
        "plan",
        "ray-started",
        "unit-committed",
        "sealed",
        "run-ended",
    ]
    assert "Loading the scorers" in {line.get("text") for line in written}
    assert (written[-1]["state"], written[-1]["exit_code"]) == ("done", 3)
    assert "1 record is in quarantine (33% of 3)" in written[-1]["error"]
    assert "Labelled 2 of 3 records" in result.stdout

    refused = made.run_without_ray("--log", "-", "--unit-size", "77")
    assert refused.returncode == 2
    last = json.loads(refused.stderr.splitlines()[-1])
    assert (last["state"], last["exit_code"]) == ("refused", 2)
    assert "unit_size" in last["error"]


def test_a_log_that_can_no_longer_be_written_does_not_stop_labelling(made: Labelling) -> None:
    output = made.folder / "full"
    result = made.run_without_ray("--log", "/dev/full", "--max-quarantined", "1", output=output)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Cannot write the log /dev/full: No space left on device") == 1
    assert (output / "manifest.json").exists()


@pytest.mark.parametrize(
    ("log", "message"),
    [("missing/run.log", "No such file"), ("corpus", "Is a directory"), ("new/run.log", "below the output")],
)
def test_a_log_that_cannot_be_opened_is_refused_before_anything_is_done(tmp_path: Path, log: str, message: str) -> None:
    (tmp_path / "corpus").mkdir()
    config = make_config(tmp_path, output=str(tmp_path / "new"), execution={"log": str(tmp_path / log)})
    with pytest.raises(UserError, match=message), run_log(config):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]
