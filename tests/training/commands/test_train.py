"""`phf train` from the command line: one command trains a model, the same command resumes, and errors have a remedy."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from pipeline.dataset.first_run import train_command
from tests.datasets import make_dataset
from tests.training import forked
from tests.training.jobs import ENVIRONMENT, command, figures, run_job, run_phf, settings
from training.runs.folder import RunFolder


def invoke(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def sets(**changes):
    return [part for setting in settings(**changes) for part in ("--set", setting)]


@pytest.fixture
def running(tmp_path, code_dataset):
    """Starts `phf train` and waits for some logged steps."""
    processes = []

    def start(arguments, steps=3):
        process = forked.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        processes.append(process)
        lines, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
        while not (lines.is_file() and lines.read_text().count("\n") >= steps):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_one_command_trains_and_json_is_all_of_stdout(tmp_path, code_dataset):
    done = run_phf([*command(code_dataset, tmp_path / "run", "conditional"), "--json"], start_python=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["status"], facts["step"], facts["objective"]) == ("finished", 12, "conditional")
    assert "Run: conditional on style" in done.stderr
    assert "step 1/12" in done.stderr
    assert "phf evaluate" in done.stderr
    # A warm-up of one step is ours to warn of.
    assert done.stderr.count("Warning") == done.stderr.count("Warning: training.warmup_ratio=0.01 of 12 steps") == 1
    for noise in ("WARNING", "DeepSpeed Op", "ninja", "Writing model shards", "[rank0]"):
        assert noise not in done.stderr, noise


@pytest.mark.slow
def test_the_run_that_labelling_suggests_can_be_run(tmp_path):
    text = "Sentence {} is here. Another damn one follows."
    scores = {"toxicity": lambda sentence: float("damn" in sentence)}
    made = make_dataset(tmp_path / "labelled", [text.format(each) for each in range(60)], scores, {"toxicity": 0})
    suggested = train_command(open_dataset(str(made)).manifest, str(made), str(tmp_path / "run"))
    done = run_phf(["-m", *shlex.split(suggested)])
    assert done.returncode == 0, done.stderr
    assert "epochs over" in done.stdout
    assert re.search(r"^expected +about .* m?s for \d+ steps", done.stdout, re.MULTILINE)
    # A corpus this small has few steps, of which a hundredth is one; of nothing else is there a warning.
    assert re.findall("Warning: [^ ]*", done.stdout + done.stderr) == ["Warning: training.warmup_ratio=0.01"]


@pytest.mark.slow
def test_killed_and_asked_again_it_goes_on_with_the_same_numbers(tmp_path, code_dataset, running):
    arguments = command(code_dataset, tmp_path / "run", training__num_tokens=120 * 4 * 32, training__save_every=8)
    process = running(arguments, steps=20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunFolder(tmp_path / "run").read_facts().status == "running"
    done = run_phf(arguments)
    assert done.returncode == 0, done.stderr
    assert "Resuming from" in done.stdout
    run_job(code_dataset, tmp_path / "whole", training__num_tokens=120 * 4 * 32)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


@pytest.mark.slow
def test_terminated_it_saves_and_exits_75(tmp_path, code_dataset, running):
    process = running(command(code_dataset, tmp_path / "run", training__num_tokens=5000 * 4 * 32))
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    facts = RunFolder(tmp_path / "run").read_facts()
    assert facts.status == "stopped"
    assert f"Stopped: asked to stop after step {facts.step} of 5000" in stderr
    assert "The same command continues from there" in stderr
    assert (tmp_path / "run" / "checkpoints" / f"step-{facts.step:08d}" / "COMMITTED").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "--output", "", "--task", "t"], "The output is empty"),
        (["", "--output", "run", "--task", "t"], "The dataset is empty"),
        ([], "data: required, but not given"),
        (
            ["missing", "--output", "run", "--task", "style"],
            "Give the --output of a `phf label` run.",
        ),
        (["missing", "--output", "run"], "task: required, but not given"),
        (["missing", "--output", "run", "--task", "t", "--model", "/no/model"], "Cannot load model '/no/model'"),
        (["missing", "--output", "run", "--task", "t", "--objective", "dpo"], "objective.name"),
        (["missing", "--output", "run", "--task", "t", "--set", "training.lr=1"], "training.lr: no such setting"),
        (
            ["missing", "--output", "run", "--task", "t", "--seed", "20250101123456"],
            "training.seed: Input should be less",
        ),
        (["missing", "--output", "run", "--task", "t", "--set", "training.batch_size"], "is not of the form KEY=VALUE"),
        (["missing", "--output", "run", "--task", "t", "--config", "no.yaml"], "Cannot read the configuration no.yaml"),
        (
            ["missing", "--output", "run", "--task", "t", "--deepspeed", "no.json"],
            "Cannot read training.deepspeed=no.json",
        ),
    ],
)
def test_what_a_user_gets_wrong_is_one_message_and_exit_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments, "--model", "nano") if "--model" not in arguments else invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "moon"], "--on moon: unknown place. Give one of here, ray."),
        (["--on", "moon", "--plan"], "--on moon: unknown place"),
        (["--address", "auto"], "--address: only for a cluster. Add --on ray"),
        (["--cpus-per-rank", 1], "--cpus-per-rank: only for a cluster"),
        (["--gpus-per-rank", 0, "--ranks", 2], "--gpus-per-rank: only for a cluster"),
        (["--plan", "--address", "x", "--max-restarts", 3], "leave --address and --max-restarts out"),
        (["--plan", "--on", "ray", "--cpus-per-rank", 2], "leave --cpus-per-rank and --on out"),
    ],
)
def test_flags_about_places_that_nobody_would_read_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = invoke("missing", "--output", "run", "--task", "t", "--model", "nano", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_column_names_those_that_there_are(tmp_path, code_dataset):
    result = invoke(code_dataset, "--output", tmp_path / "run", "--task", "pii", "--model", "nano", *sets())
    assert result.exit_code == 2
    assert "has no score column 'pii'; it has: style" in result.stderr


def test_flags_win_over_the_file_and_set_wins_over_both(tmp_path, code_dataset):
    file = tmp_path / "run.yaml"
    file.write_text(f"task: style\ndata: {{dataset: {code_dataset}}}\nmodel: {{name: gpt2}}\ntraining: {{seed: 5}}\n")
    arguments = [
        "--config",
        file,
        "--model",
        "nano",
        "--seed",
        6,
        "--output",
        tmp_path / "run",
        *sets(training__seed=7),
    ]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    config = RunFolder(tmp_path / "run").read_config()
    assert (config.model.name, config.training.seed) == ("nano", 7)
    assert result.stdout.index("Run: mle on style") < result.stdout.index("step 1/12")
