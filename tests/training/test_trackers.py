"""Trackers: the real libraries, offline; and one that fails, which must not end a run."""

import json
import math
import socket
import sys
import threading
from importlib.util import find_spec

import pytest

from scorers.errors import UserError
from tests.training.jobs import metrics, run_job
from training.config import TrackingConfig
from training.run.folder import RunFolder
from training.run.trackers import opening
from training.run.trackers.sink import Guarded
from training.run.tracking import Tracker


class Recorded:
    """Keeps what it is told, and fails at the steps it is told to fail at."""

    run_id = "known"

    def __init__(self, *fails):
        self.fails, self.logged, self.closed = fails, [], False

    def log(self, values, step):
        if step in self.fails:
            raise ConnectionError("http://key@host")
        self.logged.append((step, dict(values)))

    def close(self):
        self.closed = True


def test_a_tracker_that_fails_is_told_of_once_counted_and_without_its_words():
    told, sink = [], Recorded(2, 3)
    guarded = Guarded("it", sink, told.append)
    for step in range(1, 6):
        guarded.log({"loss": 1.0}, step)
    guarded.close()
    assert [step for step, _ in sink.logged] == [1, 4, 5]
    assert sink.closed
    assert sum("it failed (ConnectionError)" in each for each in told) == 1
    assert "it has not got 2 of the logged steps" in told[-1]
    assert "host" not in "".join(told)


def test_a_tracker_that_hangs_holds_up_neither_a_step_nor_the_end():
    released, told = threading.Event(), []

    class Hanging(Recorded):
        def log(self, values, step):
            released.wait(60)

    guarded = Guarded("it", Hanging(), told.append, closing_s=0.1)
    for step in range(2000):
        guarded.log({"loss": 1.0}, step)
    guarded.close()
    released.set()
    assert "has not got 1,999 of the logged steps" in told[-1] or "has not got 2,000" in told[-1]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_one_that_is_not_installed_is_refused_before_any_work(name, tmp_path, code_dataset, monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda package: None if package == name else find_spec(package))
    with pytest.raises(UserError, match=rf"pip install 'phf\[{name}\]'") as caught:
        run_job(code_dataset, tmp_path / "run", **{f"tracking__{name}": "{}"})
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
def test_settings_of_the_working_directory_are_refused_before_any_work(folder, tmp_path, code_dataset, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    opening.check_trackers(TrackingConfig(wandb={}))
    (tmp_path / folder / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    with pytest.raises(UserError, match=f"from {folder}/settings in the working directory"):
        run_job(code_dataset, tmp_path / "run", tracking__wandb="{mode: offline}")
    assert not (tmp_path / "run").exists()
    opening.check_trackers(TrackingConfig())


def write(folder, sinks, first, last, monkeypatch):
    """Log the steps from one to another, as a process does that goes on after step `first - 1`."""
    monkeypatch.setattr(opening, "_REMOTE", {"wandb": "Wandb"})
    seen = []

    class Module:
        @staticmethod
        def Wandb(config, given):
            seen.append(given.run_id)
            return sinks

    monkeypatch.setattr(opening, "import_module", lambda name: Module)
    config = TrackingConfig(tensorboard=False, wandb={})
    mirrors = opening.open_trackers(config, folder, first - 1, {"config": {}}, pytest.fail)
    tracker = Tracker(folder, step=first - 1, mirrors=mirrors)
    for step in range(first, last + 1):
        tracker.write(step, {"step": step, "loss": float(step), "seconds": {"forward": 0.5}})
    tracker.close()
    return seen[0]


def test_a_run_that_goes_on_is_the_same_run_and_sends_no_step_twice(tmp_path, monkeypatch):
    folder, sink = RunFolder(tmp_path), Recorded()
    assert write(folder, sink, 1, 15, monkeypatch) is None
    # From the checkpoint of step 10, killed early; then from the same again.
    assert write(folder, sink, 11, 12, monkeypatch) == "known"
    assert write(folder, sink, 11, 20, monkeypatch) == "known"
    assert [step for step, _ in sink.logged] == list(range(1, 21))
    assert sink.logged[0][1] == {"train/loss": 1.0, "seconds/forward": 0.5}
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 21))


def test_one_that_cannot_be_opened_is_left_out(tmp_path, monkeypatch):
    def refuse(name):
        raise ConnectionError

    told = []
    monkeypatch.setattr(opening, "import_module", refuse)
    config = TrackingConfig(tensorboard=False, mlflow={})
    assert opening.open_trackers(config, RunFolder(tmp_path), 0, {}, told.append) == []
    assert "tracking.mlflow cannot be opened (ConnectionError)" in told[0]


@pytest.mark.slow
def test_wandb_offline_writes_its_files_and_none_of_the_corpus(tmp_path, code_dataset, monkeypatch):
    pytest.importorskip("wandb")
    secret, host = "AKIA0123456789SECRET", "machine-with-a-name"
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(sys, "argv", ["phf", "train", f"s3://{secret}:{secret}@bucket/labelled"])
    changes = {"tracking__wandb": "{mode: offline, project: a}", "training__num_tokens": 4 * 4 * 32}
    run_job(code_dataset, tmp_path / "run", **changes)
    known = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    (file,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{known['id']}.wandb")
    content = file.read_bytes()
    assert b"train/loss" in content
    assert b"sha256" in content or b"flops_per_token" in content
    for text in (b"def ", b"import os", b"return "):
        assert text not in content
    written = [each for each in (tmp_path / "run" / "wandb").rglob("*") if each.is_file()]
    assert file in written
    for text in (secret, host, "pytest=="):
        assert not [each for each in written if text.encode() in each.read_bytes()]
    assert len(metrics(tmp_path / "run")) == 4


@pytest.mark.slow
def test_mlflow_reads_back_what_was_logged_and_goes_on_with_the_run(tmp_path, code_dataset):
    pytest.importorskip("mlflow")
    changes = {"tracking__mlflow": "{experiment: a}", "training__save_every": 2, "training__num_tokens": 6 * 4 * 32}
    run_job(code_dataset, tmp_path / "run", **changes)
    known = json.loads((tmp_path / "run" / "trackers.json").read_text())["mlflow"]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=str(tmp_path / "run" / "mlflow"))
    run = client.get_run(known["id"])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["config.model.name"] == "nano"
    assert run.data.params["facts.objective"] == "mle"
    lines = metrics(tmp_path / "run")
    found = sorted((each.step, each.value) for each in client.get_metric_history(known["id"], "train/loss"))
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    assert all(math.isclose(value, line["loss"]) for (_, value), line in zip(found, lines, strict=True))

    folder = RunFolder(tmp_path / "run")
    mirrors = opening.open_trackers(TrackingConfig(tensorboard=False, mlflow={}), folder, 4, {}, pytest.fail)
    tracker = Tracker(folder, step=4, mirrors=mirrors)
    for step in range(5, 9):
        tracker.write(step, {"step": step, "loss": float(step)})
    tracker.close()
    assert [run.info.run_id for run in client.search_runs([run.info.experiment_id])] == [known["id"]]
    steps = sorted(each.step for each in client.get_metric_history(known["id"], "train/loss"))
    assert steps == list(range(1, 9))


if find_spec("trackio"):
    # It asks for an older Pillow than `constraints.txt` has. To try it: `pip install --no-deps --target FOLDER trackio
    # gradio-client brotli orjson python-multipart`, and FOLDER on PYTHONPATH.
    def test_trackio_keeps_the_run_on_this_machine(tmp_path, code_dataset, monkeypatch, capsys):
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        run_job(code_dataset, tmp_path / "run", tracking__trackio="{project: a}", training__num_tokens=4 * 4 * 32)
        known = json.loads((tmp_path / "run" / "trackers.json").read_text())["trackio"]
        from trackio.sqlite_storage import SQLiteStorage

        assert SQLiteStorage.get_runs("a") == [known["id"]]
        found = [(row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs("a", known["id"])]
        assert found == [(line["step"], pytest.approx(line["loss"])) for line in metrics(tmp_path / "run")]
        assert capsys.readouterr().out == ""
