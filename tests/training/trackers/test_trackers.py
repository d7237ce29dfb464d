"""Trackers: the real libraries, offline; and failing ones, which must not end a run."""

import json
import math
import random
import socket
import struct
import sys
import threading
from importlib.util import find_spec

import pytest

from scorers.errors import UserError
from tests.training.jobs import metrics, run_job
from training.config import TrackingConfig
from training.runs.folder import RunFolder
from training.trackers import open as opening
from training.trackers.sink import Guarded, numbers
from training.trackers.tracker import Tracker, keep_lines


class Recorded:
    """Records what it logs, and fails at the given steps."""

    run_id, continues = "known", True

    def __init__(self, *fails):
        self.fails, self.logged, self.closed = fails, [], False

    def log(self, values, step):
        if step in self.fails:
            raise ConnectionError("http://key@host")
        self.logged.append((step, dict(values)))

    def close(self):
        self.closed = True


def test_a_tracker_that_fails_is_told_of_once_counted_and_without_its_words():
    warnings, sink = [], Recorded(2, 3)
    guarded = Guarded("it", sink, warnings.append)
    for step in range(1, 6):
        guarded.log({"loss": 1.0}, step)
    guarded.close()
    assert [step for step, _ in sink.logged] == [1, 4, 5]
    assert sink.closed
    assert sum("it failed (ConnectionError)" in each for each in warnings) == 1
    assert "it did not receive 2 of the logged steps" in warnings[-1]
    assert "host" not in "".join(warnings)


def test_a_tracker_that_hangs_holds_up_neither_a_step_nor_the_end():
    released, warnings = threading.Event(), []

    class Hanging(Recorded):
        def log(self, values, step):
            released.wait(60)

    guarded = Guarded("it", Hanging(), warnings.append, closing_s=0.1)
    for step in range(2000):
        guarded.log({"loss": 1.0}, step)
    guarded.close()
    released.set()
    assert "did not receive 1,999 of the logged steps" in warnings[-1] or "did not receive 2,000" in warnings[-1]


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


def write(folder, config, first, last, warn=pytest.fail, *, killed=False):
    """Log steps from `first` on, as a process does that resumes after step `first - 1`."""
    mirrors = opening.open_trackers(config, folder, keep_lines(folder, first - 1), {"config": {}}, warn)
    tracker = Tracker(folder, mirrors)
    for step in range(first, last + 1):
        # What is measured, and what a step is worth after other steps, is another each time.
        line = {"step": step, "tokens": step * 8, "loss": random.random(), "grad_norm": math.nan}
        tracker.write({**line, "seconds": {"forward": random.random()}})
        if step % 4 == 0:
            tracker.write({"step": step, "tokens": step * 8, "evaluation": {"bits_per_byte": random.random()}})
    if killed:
        # Nobody writes down what has arrived.
        mirrors._write = lambda: None
    tracker.close()


def of_tensorboard(folder, run_id):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0}).Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def of_mlflow(folder, run_id):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=str(folder.path / "mlflow"))
    names = client.get_run(run_id).data.metrics
    return {name: sorted((each.step, each.value) for each in client.get_metric_history(run_id, name)) for name in names}


def of_wandb(folder, run_id):
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for file in sorted(folder.path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")):
        for content in log_records(file.read_bytes()):
            items = {
                each.nested_key[0] if each.nested_key else each.key: each.value_json
                for each in Record.FromString(content).history.item
            }
            for name, value in items.items():
                if not name.startswith("_"):
                    found.setdefault(name, []).append((int(items["_step"]), float(value)))
    return found


def log_records(content):
    """The records of a file in LevelDB's log format, which W&B writes after a header of seven bytes."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def of_trackio(folder, run_id):
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for row in SQLiteStorage.get_logs("a", run_id):
        for name, value in row.items():
            if name not in ("step", "timestamp"):
                found.setdefault(name, []).append((row["step"], value))
    return found


@pytest.mark.parametrize(
    ("name", "settings", "read"),
    [
        ("tensorboard", True, of_tensorboard),
        ("mlflow", {}, of_mlflow),
        ("wandb", {"mode": "offline"}, of_wandb),
        ("trackio", {"project": "a"}, of_trackio),
    ],
)
def test_curves_are_those_of_the_metrics_however_a_run_goes_on(name, settings, read, tmp_path, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    folder = RunFolder(tmp_path / "run")
    config = TrackingConfig(**{"tensorboard": False, name: settings})
    none = TrackingConfig(tensorboard=False)

    def check():
        expected = {}
        for line in folder.read_metrics():
            for key, value in numbers(line).items():
                expected.setdefault(key, []).append((line["step"], pytest.approx(value)))
        assert list(expected) == ["train/tokens", "train/loss", "seconds/forward", "evaluation/bits_per_byte"]
        run_id = json.loads((folder.path / "trackers.json").read_text())[name]["id"]
        assert read(folder, run_id) == expected
        # W&B makes some, and the run is to go on all the same.
        folder.refuse_links()
        return run_id

    write(folder, config, 1, 5)
    first = check()
    write(folder, config, 6, 7)  # stopped, and gone on
    assert check() == first
    write(folder, config, 8, 9, killed=True)
    write(folder, config, 9, 10)  # from the checkpoint of step 8
    check()
    write(folder, config, 5, 8)  # from an earlier step
    then = check()
    write(folder, none, 9, 10)  # without it
    write(folder, config, 11, 12)
    assert check() == then


def test_what_could_not_be_sent_is_sent_when_the_run_goes_on(tmp_path, monkeypatch):
    folder, sink, warnings = RunFolder(tmp_path), Recorded(3), []

    class Module:
        @staticmethod
        def Wandb(config, given):
            seen.append((given.run_id, given.goes_back))
            sink.continues = not given.goes_back
            return sink

    seen = []
    monkeypatch.setattr(opening, "import_module", lambda name: Module)
    config = TrackingConfig(tensorboard=False, wandb={})
    write(folder, config, 1, 3, warnings.append)
    assert "metrics.jsonl has them all, and they are sent when the run is resumed" in warnings[-1]
    assert [step for step, _ in sink.logged] == [1, 2]
    sink.fails, sink.logged = (), []
    write(folder, config, 4, 5)
    assert seen == [(None, False), ("known", True)]
    assert [step for step, _ in sink.logged] == [1, 2, 3, 4, 4, 5]


def test_one_that_cannot_be_opened_is_left_out(tmp_path, monkeypatch):
    def refuse(name):
        raise ConnectionError

    warnings = []
    monkeypatch.setattr(opening, "import_module", refuse)
    config = TrackingConfig(tensorboard=False, mlflow={})
    opening.open_trackers(config, RunFolder(tmp_path), [], {}, warnings.append).close()
    assert not (tmp_path / "trackers.json").exists()
    assert "tracking.mlflow cannot be opened (ConnectionError)" in warnings[0]


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
def test_mlflow_reads_back_what_was_logged(tmp_path, code_dataset):
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
