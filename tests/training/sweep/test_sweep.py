"""Sweeps of real runs: stopped in their midst, continued, evaluated and compared."""

import io
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

import phf
from scorers.errors import UserError
from scorers.settings import load_settings
from tests.training.real_runs import make_code_dataset
from tests.training.run_folders import make_run
from training.evaluation.evaluate_run import evaluate_run
from training.evaluation.guidance_request import SweepRequest
from training.evaluation.guidance_sweep import sweep_guidance
from training.evaluation.references.compare import compare_with_reference
from training.evaluation.references.reference import find_reference
from training.loop.train import train
from training.runs import checkpoints
from training.sweep import slots
from training.sweep import sweep as module
from training.sweep.check import is_compared, is_evaluated, is_swept
from training.sweep.config import SweepConfig, SweepRun, expand
from training.sweep.jobs import Job
from training.sweep.sweep import RunState, Sweep, SweepReport, plan_sweep, run_sweep, runs_of_sweep

runner = CliRunner()


def spec(folder: Path, **changes: Any) -> Path:
    """Write a sweep of two runs that save often."""
    content = {
        "dataset": str(folder / "labelled"),
        "out": str(folder / "sweep"),
        "objectives": ["mle", "conditional"],
        "seeds": [3],
        "settings": {
            "task": "pep8",
            "model": {"name": "nano"},
            "data": {"vocab_size": 300, "context_length": 64, "held_out": 0.2},
            "training": {"num_tokens": 60 * 4 * 64, "batch_size": 4, "learning_rate": "1e-3", "save_every": 10,
                         "log_every": 1, "validate_every": 0},
            "tracking": {"tensorboard": False},
        },
        "evaluate": {"num_samples": 6, "max_new_tokens": 12, "leakage_samples": 2, "held_out_documents": 4,
                     "guidance": 2, "reference_samples": 4, "reference_tokens": 12},
        "guidance_sweep": [2],
        "reference": "mle",
        **changes,
    }  # fmt: skip
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def planned(file: Path, *overrides: str) -> Sweep:
    return plan_sweep(load_settings(SweepConfig, file=file, overrides=overrides))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    make_code_dataset(folder / "labelled", 30)
    return folder


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each of two runs one thread, as the reference has."""
    monkeypatch.setattr(slots, "usable_cores", lambda: 2)


@pytest.fixture
def evaluated_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate in this process, as starting another one takes ten seconds."""

    def evaluate(run: SweepRun) -> bool:
        if not is_evaluated(run):
            evaluate_run(run.folder, config=run.evaluation)
        return is_evaluated(run)

    def sweep_scales(run: SweepRun) -> bool:
        if not is_swept(run):
            sweep_guidance(SweepRequest(run.folder, [1.0, 2.0], run.evaluation, run.reference))
        return is_swept(run)

    def compare_with(run: SweepRun) -> bool:
        if run.reference is not None and not is_compared(run):
            reference = find_reference(str(run.reference.path), "cpu")
            compare_with_reference(run.folder, reference, run.evaluation, device="cpu")
        return is_compared(run)

    monkeypatch.setattr(module, "is_evaluated", evaluate)
    monkeypatch.setattr(module, "is_swept", sweep_scales)
    monkeypatch.setattr(module, "is_compared", compare_with)


def stop_in_the_midst(sweep: Sweep) -> None:
    """Once both runs have saved: kill the first one, and ask the sweep to stop."""
    pids: dict[str, int] = {}
    while len(pids) < len(sweep.runs):
        for run in sweep.runs:
            if run.name not in pids and checkpoints.steps(run.folder.checkpoints):
                # Hold it, or it could be finished before the other one has saved.
                pids[run.name] = int(run.folder.lock.read_text().split()[1])
                os.kill(pids[run.name], signal.SIGSTOP)
        time.sleep(0.02)
    first, second = (pids[run.name] for run in sweep.runs)
    os.kill(first, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGTERM)
    while not is_pending(second, signal.SIGTERM):
        time.sleep(0.02)
    os.kill(second, signal.SIGCONT)


def is_pending(pid: int, number: int) -> bool:
    """Whether a held process has a signal to handle."""
    (mask,) = re.findall(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.slow
def test_a_sweep_that_was_stopped_and_killed_continues_to_the_same_models(
    folder: Path, two_cores: None, evaluated_here: None, capfd: pytest.CaptureFixture[str]
) -> None:
    file = spec(folder)
    sweep = planned(file)
    watcher = threading.Thread(target=stop_in_the_midst, args=(sweep,), daemon=True)
    watcher.start()
    report = run_sweep(sweep, print)
    watcher.join()
    assert report.stopped
    assert report.page is None
    assert [run.state for run in report.runs] == ["failed", "stopped"]
    assert report.runs[0].reason == "killed by SIGKILL while training"
    assert all(0 < (checkpoints.steps(run.folder.checkpoints)[-1]) < 60 for run in sweep.runs)

    report = run_sweep(planned(file), print)
    assert [(run.state, run.step) for run in report.runs] == [("finished", 60)] * 2
    assert report.page is not None
    assert json.loads((folder / "sweep" / "sweep.json").read_text()) == report.model_dump(mode="json")
    for run in sweep.runs:
        assert "Resuming from" in sweep.log(run.name).read_text()
        undisturbed = folder / "undisturbed" / run.name
        train(run.config.model_copy(update={"output": str(undisturbed)}), Console(file=io.StringIO()))
        expected = {
            path.name: path.read_bytes() for path in (undisturbed / "model").iterdir() if path.suffix == ".safetensors"
        }
        assert expected
        assert {name: (run.folder.model / name).read_bytes() for name in expected} == expected

    # Nothing is left to do.
    kept = {path: path.stat().st_mtime_ns for path in (folder / "sweep").rglob("*") if path.is_file()}
    assert run_sweep(planned(file), print) == report
    changed = {path.name for path, time_ns in kept.items() if path.stat().st_mtime_ns != time_ns}
    assert changed <= {"sweep.json", ".lock"}

    # A run with other settings is refused by its name, and so is another dataset in its place.
    with pytest.raises(UserError) as error:
        run_sweep(planned(file, "settings.training.learning_rate=2e-3"), print)
    assert "mle-s3: " in str(error.value)
    assert "training.learning_rate: 0.001 in the run, 0.002 now" in str(error.value)
    make_code_dataset(folder / "other", 31)
    with pytest.raises(UserError, match="was trained on other data"):
        run_sweep(planned(file, f"dataset={folder / 'other'}"), print)
    assert "Traceback" not in capfd.readouterr().err


def test_the_plan_shows_runs_and_commands_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    file = spec(folder, out=str(tmp_path / "new"), seeds=[1, 2])
    result = runner.invoke(phf.app, ["sweep", str(file), "--dry-run", "--at-once", "3"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("# ")][:4] == [
        f"# {name}: new" for name in ("mle-s1", "mle-s2", "conditional-s1", "conditional-s2")
    ]
    assert "# 4 runs, 3 at once, each on" in lines[-1]
    # The two conditional runs are also sampled at other scales, and compared with mle.
    assert [sum(line.startswith(f"phf {name} ") for line in lines) for name in ("train", "evaluate")] == [4, 8]
    assert not (tmp_path / "new").exists()
    found = json.loads(runner.invoke(phf.app, ["sweep", str(file), "--dry-run", "--json"]).stdout)
    words = found["runs"][0]["commands"][0]
    assert words[:4] == ["phf", "train", str(folder / "labelled"), "--output"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "sedes=[1]"], "sedes: no such setting; did you mean 'seeds'"),
        (["--set", "settings.training.lerning_rate=1"], "mle-s3 and 1 more: The configuration is not valid"),
        (["--set", "settings.evaluation.guidance=2"], "mle-s3: evaluation.guidance=2 needs control tokens"),
        (["--set", "settings.task=toxicity"], "toxicity"),
        (["--set", "dataset=nowhere"], "nowhere"),
        (["--set", "settings.objective.threshold=1e9"], "conditional-s3: "),
    ],
)
def test_a_wrong_sweep_is_refused_before_any_work(
    folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = runner.invoke(phf.app, ["sweep", str(spec(folder, out=str(tmp_path / "new"))), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize("name", ["conditional-s3", "logs", "comparison"])
def test_a_link_in_the_folder_of_a_sweep_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "new" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"new/{name} is a link, and phf follows no links"):
        planned(spec(folder, out=str(tmp_path / "new")))


def test_a_failed_run_gives_the_status_and_names_its_log(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_first(jobs: list[Job], *_: Any) -> bool:
        for number, job in enumerate(jobs):
            job.state, job.reason = (
                ("finished", "") if number else ("failed", "status 4 while training: Stopped: no room")
            )
        return False

    monkeypatch.setattr(module, "run_jobs", fail_first)
    file = spec(folder, out=str(tmp_path / "new"), compare=False, reference=None)
    result = runner.invoke(phf.app, ["sweep", str(file)])
    assert result.exit_code == 4
    assert "1 run of 2 did not finish" in result.stderr
    assert (
        f"mle-s3 failed: status 4 while training: Stopped: no room. Log: {tmp_path / 'new' / 'logs' / 'mle-s3.log'}"
        in result.stderr
    )
    assert json.loads(runner.invoke(phf.app, ["sweep", str(file), "--json"]).stdout)["runs"][0]["state"] == "failed"


def test_runs_are_compared_with_finished_references_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[tuple[str, list[str]]]] = []

    def fail_one(jobs: list[Job], *_: Any) -> bool:
        batches.append([(job.name, [stage.title for stage in job.stages]) for job in jobs])
        for job in jobs:
            job.state = "failed" if job.name == "mle-s1" else "finished"
        return False

    monkeypatch.setattr(module, "run_jobs", fail_one)
    monkeypatch.setattr(module, "_fingerprint", str)
    report = run_sweep(planned(spec(folder, out=str(tmp_path / "new"), seeds=[1, 2])), print)
    names = ["mle-s1", "mle-s2", "conditional-s1", "conditional-s2"]
    assert [name for name, _ in batches[0]] == names
    assert batches[1] == [("conditional-s2", ["sweeping guidance", "comparing with the reference"])]
    assert [(run.state, run.reason) for run in report.runs[1:]] == [
        ("finished", ""),
        ("failed", "its reference mle-s1 did not finish"),
        ("finished", ""),
    ]
    # It is evaluated, and on the page.
    assert report.compared is not None
    assert "conditional-s1" in report.compared


def test_the_folder_of_a_sweep_is_compared_as_its_finished_runs(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    states = {
        "mle-s1": "finished", "awr-s1": "finished", "rwr-s1": "failed", "../mle-s1": "finished", "mle-s2": "finished"
    }  # fmt: skip
    for name in ("mle-s1", "awr-s1", "rwr-s1"):
        make_run(sweep / name, name.partition("-")[0])
    made = make_run(tmp_path / "mle-s1", "mle")
    (sweep / "mle-s2").symlink_to(made.path)
    facts = {"objective": "mle", "seed": 1, "values": {}, "step": 1, "steps": 1, "log": ""}
    runs = [RunState(name=name, folder=f"/earlier/{name}", state=state, **facts) for name, state in states.items()]
    (sweep / "sweep.json").write_text(SweepReport(runs=runs).model_dump_json())
    found = runs_of_sweep(sweep)
    assert found is not None
    assert found.finished == [sweep / "mle-s1", sweep / "awr-s1"]
    left_out = f"3 of 5 runs of the sweep {sweep} are left out: rwr-s1 (failed), ../mle-s1 (missing), mle-s2 (a link)."
    assert found.left_out == left_out
    assert runs_of_sweep(made.path) is None
    command = ["compare", str(sweep), "--output", str(tmp_path / "page"), "--json"]
    result = runner.invoke(phf.app, command)
    assert result.exit_code == 0, result.output
    assert [each["label"] for each in json.loads(result.stdout)["runs"]] == ["mle", "awr"]
    assert json.loads(result.stdout)["notes"][0] == left_out
    assert f'<p class="box">{left_out}</p>' in (tmp_path / "page" / "index.html").read_text()
    (sweep / "sweep.json").write_text(SweepReport(runs=runs[2:3]).model_dump_json())
    result = runner.invoke(phf.app, command)
    assert result.exit_code == 2
    assert "of which no run can be compared. 1 of 1 run of the sweep" in " ".join(result.stderr.split())
    (sweep / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged, or of another version of phf\. Give the sweep's runs"):
        runs_of_sweep(sweep)


def test_the_share_of_the_machine_follows_from_the_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = expand(load_settings(SweepConfig, file=spec(folder, seeds=[1, 2])))
    monkeypatch.setattr(slots, "usable_cores", lambda: 9)
    shares = {"OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "3"}
    assert slots.slots(runs, 3) == [shares] * 3
    monkeypatch.setattr(slots, "usable_cores", lambda: 1)
    assert slots.slots(runs, None) == [{"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}]
    monkeypatch.setattr(slots, "usable_cores", lambda: 3)
    monkeypatch.setattr(slots, "_PROCESS_BYTES", 1e6)
    assert len(slots.slots(runs, None)) == 3
    # Two fit into the memory.
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(slots, "_PROCESS_BYTES", 0.8 * total / 2.5)
    assert len(slots.slots(runs, None)) == 2
    monkeypatch.setattr(slots, "_gpus", lambda: ["4", "7"])
    assert [each["CUDA_VISIBLE_DEVICES"] for each in slots.slots(runs, None)] == ["4", "7"]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in slots.slots(runs, 3)] == ["4", "7", "4"]
