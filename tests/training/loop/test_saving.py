"""Checkpoints written in the background are the same and count only when complete, and whatever happens meanwhile loses
only the steps since the previous one."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from scorers.errors import IncompleteError
from tests.training import forked
from tests.training.jobs import ENVIRONMENT, LONGER, command, figures, job_config, metrics, run_job
from training.data.prepare import prepare
from training.loop import saving
from training.loop.train import TrainingJob
from training.runs import checkpoints
from training.runs.folder import RunFolder

BESIDE = {"training__save_async": "true", "training__keep_checkpoints": 9}
# A disk that takes its time, so that something can happen meanwhile.
SLOW_DISK = """
import os, time
flush = os.fsync
def fsync(descriptor):
    time.sleep(0.4)
    flush(descriptor)
os.fsync = fsync
"""


def content(folder, step):
    """The content of the checkpoint's files, by path."""
    found = checkpoints.verify(checkpoints.checkpoint_path(folder, step))
    assert isinstance(found, checkpoints.Checkpoint)
    names = [file.path for file in found.marker.files if file.path.endswith(".pt")]
    return {name: torch.load(found.path / name, weights_only=False) for name in names}


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right)


def test_they_hold_the_same_and_training_is_not_disturbed(tmp_path, code_dataset):
    changes = {"training__save_every": 4, "training__keep_checkpoints": 9, "training__skip_sigmas": 8}
    run_job(code_dataset, tmp_path / "waiting", "awr", **changes)
    run_job(code_dataset, tmp_path / "beside", "awr", **changes, training__save_async="true")
    assert figures(tmp_path / "beside") == figures(tmp_path / "waiting")
    folders = [tmp_path / name / "checkpoints" for name in ("waiting", "beside")]
    assert checkpoints.steps(folders[0]) == checkpoints.steps(folders[1]) == [4, 8, 12]
    for step in (4, 8):
        waiting, beside = [content(folder, step) for folder in folders]
        assert len(waiting) == 4
        assert same(waiting, beside)
    for name in ("waiting", "beside"):
        lines = metrics(tmp_path / name)
        assert [line["step"] for line in lines if "saving" in line] == [5, 9]
        assert all(line["saving"]["stalled"] > line["saving"]["waited"] for line in lines if "saving" in line)


def test_a_save_waits_for_the_one_before_and_says_how_long(tmp_path, code_dataset, monkeypatch):
    under_way, wanted = [], threading.Event()
    original, wait = saving.Saving._write, saving.Saving.wait

    def slow(self, staging, files, states):
        under_way.append(staging)
        # However long the steps between two checkpoints take, the second one finds the first under way.
        assert wanted.wait(100)
        time.sleep(0.5)
        assert len(list(staging.parent.glob(".staging-step-*"))) == 1
        return original(self, staging, files, states)

    def waiting(self):
        if self.pending is not None:
            wanted.set()
        wait(self)

    monkeypatch.setattr(saving.Saving, "_write", slow)
    monkeypatch.setattr(saving.Saving, "wait", waiting)
    run_job(code_dataset, tmp_path / "run", training__save_every=4, **BESIDE)
    assert len(under_way) == 3
    lines = [line["saving"] for line in metrics(tmp_path / "run") if "saving" in line]
    assert lines[0]["waited"] < 0.4 < lines[1]["waited"] < lines[1]["stalled"]
    assert checkpoints.steps(tmp_path / "run/checkpoints") == [4, 8, 12]


def test_it_is_a_checkpoint_before_the_model_is_evaluated(tmp_path, code_dataset, monkeypatch):
    original = saving.Saving._write

    def slow(self, staging, files, states):
        time.sleep(0.3)
        return original(self, staging, files, states)

    def killed(*_, **__):
        assert checkpoints.steps(tmp_path / "run/checkpoints") == [4]
        raise IncompleteError("the machine is gone")

    monkeypatch.setattr(saving.Saving, "_write", slow)
    monkeypatch.setattr(TrainingJob, "_prepare_evaluation", lambda _: None)
    monkeypatch.setattr("training.loop.train.evaluate_model", killed)
    with pytest.raises(IncompleteError, match="the machine is gone"):
        run_job(code_dataset, tmp_path / "run", training__save_every=4, training__evaluate_every=4, **BESIDE)


@pytest.mark.parametrize("failing", [8, 12])
def test_a_failure_beside_the_loop_ends_the_run_as_one_in_it(tmp_path, code_dataset, monkeypatch, failing):
    output = tmp_path / "run"

    def full(root, paths):
        if f"{failing:08d}" in root.name:
            time.sleep(0.1)
            raise OSError(28, "No space left on device")
        return describe(root, paths)

    describe = checkpoints.describe
    monkeypatch.setattr(checkpoints, "describe", full)
    with pytest.raises(IncompleteError, match=r"could not be written .*No space left on device.*free there"):
        run_job(code_dataset, output, training__save_every=4, **BESIDE)
    monkeypatch.undo()
    assert checkpoints.newest(output / "checkpoints")[0].marker.step == failing - 4
    assert list((output / "checkpoints").glob(".staging-*"))
    _, printed = run_job(code_dataset, output, training__save_every=4, **BESIDE)
    assert f"step {failing - 4} of 12" in printed
    assert not list((output / "checkpoints").glob(".staging-*"))
    run_job(code_dataset, tmp_path / "undisturbed")
    assert figures(output) == figures(tmp_path / "undisturbed")


def test_where_there_is_no_memory_for_the_copy_that_is_said(tmp_path, code_dataset, monkeypatch):
    def copy(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(saving.Snapshot, "copy", copy)
    with pytest.raises(IncompleteError, match=r"no host memory for a copy .* which training\.save_async needs"):
        run_job(code_dataset, tmp_path / "run", training__save_every=4, **BESIDE)


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory, code_dataset):
    prepare(job_config(code_dataset, tmp_path_factory.mktemp("prepared") / "run"))


def start(dataset, output, *options, slow=True):
    environment = {**os.environ, **ENVIRONMENT}
    if slow:
        (output.parent / "disk").mkdir(exist_ok=True)
        (output.parent / "disk/sitecustomize.py").write_text(SLOW_DISK)
        environment["PYTHONPATH"] = f"{output.parent / 'disk'}{os.pathsep}{environment['PYTHONPATH']}"
    return forked.Popen(
        [sys.executable, *command(dataset, output, "awr", **LONGER, **BESIDE), "--ranks", "2", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=output.parent,
    )


def until(process, found):
    deadline = time.monotonic() + 200
    while not found():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def being_written(output: Path, step: int) -> bool:
    """Whether the loop continues while the checkpoint's files are still incomplete."""
    lines = output / "metrics.jsonl"
    staging = checkpoints.staging_path(output / "checkpoints", step)
    return staging.is_dir() and lines.is_file() and lines.read_text().count("\n") > step


def second_rank(process):
    return forked.ranks_of(process)[1]


@pytest.mark.slow
def test_whatever_happens_meanwhile_costs_the_steps_since_the_checkpoint_before(tmp_path, code_dataset, undisturbed):
    output = tmp_path / "run"
    folder = output / "checkpoints"
    with start(code_dataset, output) as process:
        until(process, lambda: being_written(output, 10))
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 75, stderr
    stopped = RunFolder(output).read_facts()
    assert stopped.status == "stopped"
    assert checkpoints.steps(folder) == [10, stopped.step]

    with start(code_dataset, output, "--max-restarts", "1") as process:
        until(process, lambda: being_written(output, 20))
        second_rank(process).kill()
        until(process, lambda: checkpoints.steps(folder) == [10, stopped.step, 20])
        second_rank(process).rlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        _, stderr = process.communicate(timeout=200)
    assert process.returncode == 4, stderr
    assert "Rank 1 was killed by SIGKILL; starting again" in stderr
    assert "a checkpoint could not be written" in stderr
    assert "another rank failed" in stderr
    assert "Traceback" not in stderr
    assert list(folder.glob(".staging-*"))
    found, damaged = checkpoints.newest(folder)
    assert (found.marker.step, found.marker.ranks, damaged) == (20, 2, [])

    with start(code_dataset, output, slow=False) as process:
        _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert figures(output) == figures(undisturbed)
    assert not list(folder.glob(".staging-*"))
