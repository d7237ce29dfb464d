"""`phf submit` and `phf jobs`: what is refused before anything is submitted, and real jobs on this machine."""

import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from click.testing import Result
from typer.testing import CliRunner

from infra.local.processes import start_time
from infra.submission import jobs
from infra.submission.job import Job, Kind
from infra.submission.store import Store
from phf import app
from scorers import interpreter
from tests.training.jobs import ENVIRONMENT, make_code_dataset, settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small corpus, and a state folder of its own beside it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text(json.dumps({"id": "1", "text": "One. Two."}) + "\n")
    monkeypatch.chdir(folder)
    return folder


def phf(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def label(*words: str) -> Result:
    return phf("submit", "label", "--on", "local", *words)


OUTPUT = ("--output", "out", "--scorer", "pii")


def test_a_dry_run_prints_the_command_as_it_was_given_and_submits_nothing(folder: Path) -> None:
    odd = "a 'b' $(touch x)\x1b[31m.jsonl"
    (folder / odd).write_text((folder / "corpus.jsonl").read_text())
    (folder / "-r.jsonl").write_text((folder / "corpus.jsonl").read_text())
    given = ["--set", "execution.attempts=5", "--text-field=--text", *OUTPUT]
    result = label("--dry-run", *given, "--", odd, "-r.jsonl")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    line = result.output.split(" && ")[1].split(" >> ")[0]
    assert "$'a \\'b\\' $(touch x)\\x1b[31m.jsonl'" in line
    words = shlex.split(line.replace("$'a \\'b\\' $(touch x)\\x1b[31m.jsonl'", "ODD"))
    assert words[:2] == ["phf", "label"]
    assert sorted(words[2:-3]) == sorted(given)
    assert words[-3:] == ["--", "ODD", "-r.jsonl"]
    assert not (folder.parent / "state").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["corpus.jsonl", "--scorer", "pii"], "output: required"),
        (["missing.jsonl", *OUTPUT], "There is no input missing.jsonl"),
        (["corpus.jsonl", *OUTPUT, "--threshold", "pep8=0"], "pep8"),
        (["corpus.jsonl", *OUTPUT, "--extend"], "holds no job to extend"),
        (["corpus.jsonl", *OUTPUT, "--set", "execution.attempts=0"], "execution.attempts"),
        (["corpus.jsonl", "--output", "corpus.jsonl", "--scorer", "pii"], "lies inside the output"),
        (["s3://user:hunter2@host/corpus", *OUTPUT], "password"),
        (["corpus.jsonl", *OUTPUT, "--set", "id_field=hf_abcdefghijklmnopqrstuvwxyz"], "password"),
    ],
)
def test_what_the_job_would_refuse_is_refused_before_it_is_submitted(
    folder: Path, words: list[str], problem: str
) -> None:
    result = label(*words)
    assert result.exit_code == 2, result.output
    assert problem in " ".join(result.stderr.split())
    assert "hunter2" not in result.output
    assert "hf_abc" not in result.output
    assert not (folder.parent / "state").exists()
    assert not (folder / "out").exists()


def test_a_plan_and_a_place_that_does_not_exist_are_wrong_usage(folder: Path) -> None:
    for kind in ("label", "train"):
        result = phf("submit", kind, "labelled", "--on", "local", "--plan")
        assert (result.exit_code, "No such option" in result.output) == (2, True)
    result = phf("submit", "train", "labelled", "--on", "moon")
    assert (result.exit_code, "'moon' is not" in result.output) == (2, True)
    assert phf("submit", "train", "labelled").exit_code == 2


def test_training_is_checked_against_its_dataset_and_its_folder(folder: Path) -> None:
    words = ["submit", "train", "labelled", "--task", "style", "--model", "nano", "--output", "run", "--on", "local"]
    result = phf(*words)
    assert (result.exit_code, "labelled" in result.stderr) == (2, True), result.output
    make_code_dataset(folder / "labelled", ["bisect"])
    assert phf(*words, "--dry-run").exit_code == 0
    result = phf(*words, "--batch-size", "7", "--ranks", "2")
    assert (result.exit_code, "7" in result.stderr) == (2, True), result.output


def test_an_unknown_or_damaged_job_is_one_message(folder: Path) -> None:
    assert (phf("jobs").exit_code, phf("jobs", "--json").output) == (0, "[]\n")
    for unknown in ("label-00000000", "../../secret", "label-0000000\x1b"):
        result = phf("jobs", unknown)
        assert result.exit_code == 2
        assert "There is no job" in result.stderr
        assert "\x1b" not in result.stderr
    record = Store().files("label-00000000").record
    record.parent.mkdir(parents=True)
    record.write_text('{"id": "label-00000000"}')
    result = phf("jobs", "label-00000000")
    assert (result.exit_code, "damaged" in result.stderr) == (2, True)
    # It does not hide the others.
    sound = Job(id="label-11111111", kind=Kind.LABEL, words=("label",), folder="/", output="/out", place="moon")
    record.with_name(f"{sound.id}.json").write_text(sound.model_dump_json())
    result = phf("jobs", "--json")
    assert [job["id"] for job in json.loads(result.stdout)] == [sound.id]
    assert "damaged" in result.stderr


def wait_until(ready: Callable[[], Any], job: str) -> None:
    while not ready():
        assert state(job) == "running", phf("jobs", job).stdout
        time.sleep(0.2)


@pytest.fixture
def submitted(folder: Path) -> Iterator[Callable[..., str]]:
    """Submits a training job on this machine; what is left of the jobs is killed at the end."""
    make_code_dataset(folder / "labelled", ["bisect", "glob", "queue"])
    found: list[str] = []

    def submit(output: str, **changes: Any) -> str:
        words = [word for setting in settings(data__held_out=0, **changes) for word in ("--set", setting)]
        given = ["labelled", "--task", "style", "--model", "nano", "--output", output, *words]
        result = phf("submit", "train", *given, "--on", "local")
        assert result.exit_code == 0, result.output
        found.append(result.stdout.strip())
        return found[-1]

    yield submit
    for job in found:
        kill(job)


def kill(job: str) -> None:
    record = Store().find(job)
    assert record is not None
    if psutil.pid_exists(int(record.handle["pid"])):
        runner = psutil.Process(int(record.handle["pid"]))
        for process in [*runner.children(recursive=True), runner]:
            process.kill()
        runner.wait(60)


def state(job: str) -> str:
    found: str = json.loads(phf("jobs", job, "--json").stdout)["state"]
    return found


def test_a_job_whose_runner_is_killed_is_asked_to_stop_and_is_seen_until_it_has_ended(folder: Path) -> None:
    store = Store()
    job = Job(id="train-11111111", kind=Kind.TRAIN, words=("train",), folder="/", output="/out", place="local")
    asked = folder / "asked"
    # Like phf, it starts with these signals blocked.
    body = (
        f"import signal, time; note = lambda *_: open({str(asked)!r}, 'a').write('.'); note(); "
        "signal.signal(signal.SIGTERM, note); signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]); "
        "[time.sleep(0.1) for _ in range(600)]"
    )
    with store.submitting(job.id) as files:
        command = interpreter.command("infra.local.runner", str(files.folder), job.id, sys.executable, "-c", body)
        runner = subprocess.Popen(command, env=interpreter.environment())
        handle = {"host": socket.gethostname(), "pid": str(runner.pid), "started": str(start_time(runner.pid))}
        store.write(job.model_copy(update={"handle": handle}))
    wait_until(asked.is_file, job.id)
    (body_process,) = psutil.Process(runner.pid).children()
    runner.kill()
    runner.wait()
    wait_until(lambda: asked.read_text() == "..", job.id)
    assert f"its own process is {body_process.pid}" in phf("jobs", job.id).stdout
    assert phf("jobs", job.id, "--cancel").exit_code == 0
    wait_until(lambda: asked.read_text() == "...", job.id)
    body_process.kill()
    while state(job.id) != "lost":
        time.sleep(0.1)


def test_a_cluster_that_does_not_answer_is_asked_once_and_hides_no_job(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, squeue = folder / "calls", folder / "squeue"
    squeue.write_text(f"#!/bin/sh\necho >> {calls}; echo 'Unable to contact slurm controller' >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("COLUMNS", raising=False)
    handles = {"slurm": {"job": "7"}, "local": {"host": "elsewhere", "pid": "1", "started": "0"}}
    store, output = Store(), "/long" * 30
    for number, place in enumerate(["slurm", "slurm", "local"]):
        job = Job(id=f"train-{number:08}", kind=Kind.TRAIN, words=(), folder="/", output=output, place=place)
        with store.submitting(job.id):
            store.write(job.model_copy(update={"handle": handles[place]}))
    listed = phf("jobs")
    assert listed.exit_code == 0
    assert calls.read_text() == "\n"
    for state in ("unknown: Slurm's squeue failed: Unable to contact slurm controller", "running"):
        assert re.search(rf"{state}.*{output}", listed.stdout), listed.stdout
    shown = phf("jobs", "train-00000000")
    assert (shown.exit_code, output in shown.stdout) == (0, True)


def test_ctrl_c_ends_only_the_following(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = {"host": "elsewhere", "pid": "1", "started": "0"}
    job = Job(id="train-11111111", kind=Kind.TRAIN, words=(), folder="/", output="/o", place="local", handle=handle)
    with Store().submitting(job.id):
        Store().write(job)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.time, "sleep", interrupt)
    followed = phf("jobs", job.id, "--follow")
    assert (followed.exit_code, f"{job.id} runs on." in followed.stderr) == (130, True), followed.output


@pytest.mark.slow
def test_a_job_outlives_its_terminal_is_cancelled_resumes_and_is_followed(
    folder: Path, submitted: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    job = submitted("run", training__num_tokens=1e6)
    metrics = folder / "run" / "metrics.jsonl"
    wait_until(metrics.is_file, job)
    record = Store().find(job)
    assert record is not None
    # What a terminal sends when it is closed.
    os.killpg(int(record.handle["pid"]), signal.SIGHUP)
    size = metrics.stat().st_size
    wait_until(lambda: metrics.stat().st_size > size, job)
    assert state(job) == "running"
    assert phf("jobs", job, "--cancel").exit_code == 0
    assert phf("jobs", job, "--follow").exit_code == 75
    assert state(job) == "cancelled"
    assert phf("jobs", job, "--cancel").exit_code == 2

    assert submitted("run", training__num_tokens=1e6) == job
    refused = phf("submit", "train", *record.words[1:], "--on", "local")
    assert refused.exit_code == 2
    assert f"{job} already writes to {folder}/run: it is running (--on local)" in " ".join(refused.stderr.split())
    size = metrics.stat().st_size
    wait_until(lambda: metrics.stat().st_size > size, job)
    kill(job)
    assert state(job) == "lost"

    short = submitted("short")
    followed = phf("jobs", short, "--follow")
    assert followed.exit_code == 0, followed.output
    assert f"{short} is finished" in followed.stderr
    record = Store().find(short)
    assert record is not None
    other = phf("submit", "train", *record.words[1:], "--objective", "conditional", "--dry-run", "--on", "local")
    assert (other.exit_code, "objective.name: 'mle' in the run" in other.stderr) == (2, True), other.output
    assert phf("submit", "train", *record.words[1:], "--dry-run", "--on", "local").exit_code == 0
    assert {each["id"]: each["state"] for each in json.loads(phf("jobs", "--json").stdout)} == {
        job: "lost",
        short: "finished",
    }
    files = list(Store().files(job).folder.iterdir())
    assert len(files) >= 8
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "hf_abc" not in path.read_text()
