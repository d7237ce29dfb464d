"""A run that is asked to stop abandons an evaluation, and repeats it when it is resumed."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from scorers.errors import StoppedError
from scorers.stopping import stoppable
from tests.training import forked, real_runs
from tests.training.jobs import ENVIRONMENT, metrics
from training.distributed.abandoning import Abandoned
from training.loop import callbacks
from training.loop.train import train
from training.runs.best import read
from training.runs.checkpoints import steps
from training.runs.folder import RunFolder

SETTINGS = {
    "training.num_tokens": 8 * 8 * 64,
    "training.log_every": 1,
    "training.save_every": 3,
    "training.evaluate_every": 4,
    "training.keep_checkpoints": 9,
    "evaluation.num_samples": 8,
    "evaluation.max_new_tokens": 8,
    "evaluation.batch_size": 4,
    "tracking.tensorboard": "false",
}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return real_runs.make_code_dataset(tmp_path_factory.mktemp("evaluated") / "labelled")


def run(dataset, output, **changes):
    config = real_runs.config_of(dataset, output, **{**SETTINGS, **changes})
    return train(config, Console(file=io.StringIO(), width=200))


def logged(output):
    """Losses and figures by step, in the order of the lines of `metrics.jsonl`."""
    return [(line["step"], line.get("evaluation") or line["loss"]) for line in metrics(output)]


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run(dataset, output)
    lines = logged(output)
    assert [step for step, _ in lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    return lines


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


def in_the_step(monkeypatch, at):
    original = callbacks.Checkpointing.after_step

    def after_step(callback, trainer, step):
        original(callback, trainer, step)
        if step.number == at:
            ask()

    monkeypatch.setattr(callbacks.Checkpointing, "after_step", after_step)


def while_it_scores(monkeypatch, at):
    done = []

    def score(*_):
        done.append(1)
        if len(done) == at // 4:
            ask()
            time.sleep(100)
        return original(*_)

    from training.evaluation import evaluate

    original = evaluate.score_samples
    monkeypatch.setattr(evaluate, "score_samples", score)


def ask_twice(*_):
    # The first is lost on its way, as in a library.
    with contextlib.suppress(Abandoned):
        ask()
    ask()


@pytest.mark.parametrize("when", [in_the_step, while_it_scores])
@pytest.mark.parametrize("at", [4, 8])
def test_a_stop_does_not_wait_for_an_evaluation_which_comes_when_the_run_goes_on(
    tmp_path, dataset, undisturbed, monkeypatch, when, at
):
    with monkeypatch.context() as patch:
        when(patch, at)
        began = time.monotonic()
        with pytest.raises(StoppedError, match=f"asked to stop after step {at} of 8; the state is saved"):
            run(dataset, tmp_path / "run")
        assert time.monotonic() - began < 60
    with monkeypatch.context() as patch:
        # Also where it is made up for.
        while_it_scores(patch, 4)
        with pytest.raises(StoppedError, match=f"asked to stop after step {at} of 8; the state is saved"):
            run(dataset, tmp_path / "run")
    stopped = RunFolder(tmp_path / "run").read_facts()
    assert (stopped.status, stopped.step) == ("stopped", at)
    assert logged(tmp_path / "run") == undisturbed[: 4 if at == 4 else 9]
    assert run(dataset, tmp_path / "run").status == "finished"
    assert logged(tmp_path / "run") == undisturbed
    assert read(tmp_path / "run/checkpoints") == {step: each for step, each in undisturbed if isinstance(each, dict)}


def test_a_stop_before_the_step_leaves_the_evaluation_out(tmp_path, dataset, undisturbed, monkeypatch):
    with monkeypatch.context() as patch:
        in_the_step(patch, 3)
        with pytest.raises(StoppedError, match="asked to stop after step 4 of 8"):
            run(dataset, tmp_path / "run")
    assert logged(tmp_path / "run") == undisturbed[:4]


@pytest.mark.parametrize("at", [4, 8])
def test_an_evaluation_that_was_cut_off_is_made_up_for_and_no_other_is(tmp_path, dataset, undisturbed, monkeypatch, at):
    def die(callback, trainer, step, figures):
        if step == at:
            raise Killed
        original(callback, trainer, step, figures)

    original = callbacks.Evaluation._record
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Evaluation, "_record", die)
        with pytest.raises(Killed):
            run(dataset, tmp_path / "run", **{"training.save_every": 4})
    assert steps(tmp_path / "run/checkpoints")[-1] == at
    shutil.rmtree(tmp_path / "run/model", ignore_errors=True)
    run(dataset, tmp_path / "run", **{"training.save_every": 4})
    assert logged(tmp_path / "run") == undisturbed
    # From the same step, whose figures are there by now.
    evaluated = []
    monkeypatch.setattr(callbacks.Evaluation, "_record", lambda *_: evaluated.append(1))
    shutil.rmtree(tmp_path / "run/model")
    run(dataset, tmp_path / "run", **{"training.save_every": 4})
    assert logged(tmp_path / "run") == undisturbed
    assert evaluated == []


def test_who_asks_again_waits_for_nothing(tmp_path, dataset, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("training.loop.trainer._ASKED_ONCE_S", 0.0)
        patch.setattr("training.evaluation.evaluate.score_samples", ask_twice)
        with pytest.raises(StoppedError, match="received SIGTERM"), stoppable():
            run(dataset, tmp_path / "run")
    facts = RunFolder(tmp_path / "run").read_facts()
    assert (facts.status, facts.step) == ("stopped", 3)


@pytest.mark.slow
def test_a_stop_of_any_rank_ends_the_evaluation_of_the_first(tmp_path, dataset):
    output = tmp_path / "run"
    settings = {**SETTINGS, "evaluation.num_samples": 10**6}
    arguments = ["-m", "phf", "train", str(dataset), "--output", str(output), "--task", "pep8", "--model", "nano"]
    config = real_runs.config_of(dataset, output, **settings)
    settings |= {
        "data.vocab_size": config.data.vocab_size,
        "data.context_length": config.data.context_length,
        "data.held_out": config.data.held_out,
        "data.store": config.data.store,
        "training.batch_size": config.training.batch_size,
    }
    for key, value in settings.items():
        arguments += ["--set", f"{key}={value}"]
    with forked.Popen(
        [sys.executable, *arguments, "--ranks", "2"],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        lines = output / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (lines.is_file() and lines.read_text().count("\n") == 4):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        time.sleep(1.0)
        forked.ranks_of(process)[1].send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert stderr.count("asked to stop after step 4 of 8; the state is saved") == 1
    assert "Traceback" not in stderr
    assert RunFolder(output).read_facts().step == steps(output / "checkpoints")[-1] == 4
    assert len(metrics(output)) == 4
