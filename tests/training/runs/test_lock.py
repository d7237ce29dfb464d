"""Only one launch at a time trains into a folder."""

import subprocess
import sys

import pytest

from scorers.errors import IncompleteError
from tests.training.jobs import figures, run_job
from training.loop.train import TrainingJob
from training.runs import lock
from training.runs.folder import RunFolder

HOLDER = """
import sys, time
from pathlib import Path
from training.runs.folder import RunFolder
from training.runs.lock import sole_launch
with sole_launch(RunFolder(Path(sys.argv[1])), print):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(output, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_launch_gives_up_and_leaves_everything_as_it_was(tmp_path, code_dataset, monkeypatch):
    monkeypatch.setattr(lock, "_WAIT_S", 0.2)
    with hold(tmp_path / "run", 100) as process:
        with pytest.raises(
            IncompleteError, match=f"is being trained by process {process.pid} on .*one process at a time"
        ):
            run_job(code_dataset, tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        # However it ends, it holds the folder no longer.
        process.kill()
    assert run_job(code_dataset, tmp_path / "run")[0].status == "finished"


def test_a_second_launch_waits_for_the_first_to_end(tmp_path, code_dataset, monkeypatch):
    acquire, attempts = lock._acquire, []

    def end_the_first(file):
        attempts.append(acquire(file))
        if len(attempts) == 2:
            process.kill()
            process.wait()
        return attempts[-1]

    monkeypatch.setattr(lock, "_acquire", end_the_first)
    with hold(tmp_path / "run", 100) as process:
        facts, printed = run_job(code_dataset, tmp_path / "run")
    assert attempts == [False, False, True]
    assert f"Waiting for process {process.pid} on " in printed
    assert facts.status == "finished"


def test_a_run_holds_its_folder_to_the_end_and_no_longer(tmp_path, code_dataset, monkeypatch):
    output = tmp_path / "run"
    held = []
    export = TrainingJob._export

    def look(job, weights):
        with RunFolder(output).lock.open() as file:
            held.append(not lock._acquire(file))
        export(job, weights)

    monkeypatch.setattr(TrainingJob, "_export", look)
    run_job(code_dataset, output)
    assert held == [True]
    monkeypatch.undo()
    before = figures(output)
    # The finished run is found at once.
    assert "is finished" in run_job(code_dataset, output)[1]
    assert figures(output) == before


def test_where_a_file_system_has_no_locks_training_goes_on_without(tmp_path, code_dataset, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    assert run_job(code_dataset, tmp_path / "run")[0].status == "finished"
