"""`phf submit … --on slurm` on a real Slurm of several nodes, all of them on this machine."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from infra.submission.store import Store
from phf import app
from scorers import registry
from tests.infra.real_slurm import RealSlurm, real_slurm, why_not
from tests.pipeline import probe
from tests.training import real_runs
from tests.training.jobs import ENVIRONMENT, ROOT, make_code_dataset, settings
from training.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]
# One core for a job, and the whole time that a test may take.
RESOURCES = ("--on", "slurm", "--cpus", "1", "--time", "60")
DOCUMENTS = [{"id": str(number), "text": f"Sentence {number}. And another."} for number in range(8)]
LABEL = ("--scorer", "probe", "--threshold", "probe=20", "--unit-size", "100", "--workers", "1")


@pytest.fixture(scope="module")
def slurm() -> Iterator[RealSlurm]:
    with real_slurm() as found:
        yield found


@pytest.fixture(scope="module")
def folder(slurm: RealSlurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all tests: its name needs quotes; with a corpus and a labelled dataset."""
    base = tmp_path_factory.mktemp("slurm")
    folder = base / "a 'folder' of 100%"
    folder.mkdir()
    probe.install(base / "site-packages")
    variables = {
        **ENVIRONMENT,
        "PYTHONPATH": f"{base / 'site-packages'}:{ROOT}",
        "SLURM_CONF": str(slurm.conf),
        "XDG_STATE_HOME": str(base / "state"),
        probe.LOG: str(base / "scored"),
        # Names of nodes that exist only in Slurm.
        "MASTER_ADDR": "127.0.0.1",
        "PHF_JOIN_S": "900",
        "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz",
    }
    (folder / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in DOCUMENTS))
    make_code_dataset(folder / "labelled", ["bisect", "glob", "queue"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.syspath_prepend(base / "site-packages")
        registry._plugins.cache_clear()
        patch.chdir(folder)
        yield folder


def phf(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def submit(kind: str, *words: str) -> str:
    result = phf("submit", kind, *RESOURCES, *words)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def train(output: str, *words: str, **changes: Any) -> str:
    given = [word for setting in settings(data__held_out=0, **changes) for word in ("--set", setting)]
    return submit("train", "labelled", "--task", "style", "--model", "nano", "--output", output, *given, *words)


def facts(job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(phf("jobs", job, "--json").stdout)
    return found


def wait(job: str, *states: str, until: Callable[[], Any] = lambda: True) -> None:
    """Wait for one of the states of a job, and then for something else; fail if it ends in another."""
    while (now := facts(job))["state"] not in states or not until():
        alive = now["state"] in ("queued", "running", "requeued")
        assert alive or now["state"] in states, f"{now}\n{Store().files(job).log.read_text()}"
        time.sleep(0.5)


def slurm_number(job: str) -> str:
    number: str = facts(job)["handle"]["job"]
    return number


def data_of(dataset: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (dataset / "data").rglob("*.parquet")}
    assert found
    return found


def weights(run: str) -> bytes:
    return (RunFolder(Path(run)).model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--partition", "moon"], "Slurm has no partition moon. There are: main."),
        (["--nodes", "4"], "asks for 4 machines with 1 cores each, and main has 3 of them"),
        (["--cpus", "5"], "main has 0 of them; its largest machines have 4 cores"),
        (["--time", "2"], "--time 2 is not longer than the 120 s before the limit"),
        (["--time", "soon"], "is no time of Slurm"),
        (["--memory", "64 G"], "--memory '64 G' is not of the form"),
        (["--account", "a\nb"], "is not of the form"),
        (["--sbatch-option=--qos='x y'"], "without quotes"),
        (["--sbatch-option=--array=1-9"], "phf sets it itself"),
        (["--sbatch-option=--constraint=moon"], "Slurm's sbatch failed: Invalid feature specification."),
        (["--address", "auto"], "With --on slurm the place decides --address"),
        (["--tasks", "2"], "--tasks sets the ranks of `phf train`"),
    ],
)
def test_what_slurm_would_refuse_is_one_message(folder: Path, words: list[str], problem: str) -> None:
    result = phf("submit", "label", *RESOURCES, "corpus.jsonl", "--output", "refused", *LABEL, *words)
    assert result.exit_code == 2, result.output
    assert problem in " ".join(result.stderr.split())
    assert len(result.stderr.splitlines()) == 1
    jobs, damaged = Store().jobs()
    assert not damaged
    assert not [job for job in jobs if job.output.endswith("refused")]


def test_without_slurm_the_message_says_where_to_submit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["submit", "label", "corpus.jsonl", "--output", "refused", *LABEL, "--on", "slurm"]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        result = phf(*words)
    assert (result.exit_code, "is not installed here" in result.stderr) == (2, True)
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    result = phf(*words)
    assert (result.exit_code, "Slurm's sinfo failed" in result.stderr) == (2, True)


def test_an_output_that_a_node_does_not_see_is_refused_by_the_job(folder: Path, slurm: RealSlurm) -> None:
    output = slurm.private / "out"
    words = ["--nodes", "2", "--sbatch-option=--nodelist=n1,n3"]
    job = submit("label", "corpus.jsonl", "--output", str(output), *LABEL, *words)
    followed = phf("jobs", job, "--follow")
    assert followed.exit_code == 2
    assert f"n3 sees another folder {slurm.private}, or none. Choose an --output on a file system" in followed.output
    assert facts(job)["reason"].startswith("refused")
    assert not list(slurm.private.iterdir())


def test_a_labelling_job_is_requeued_before_its_time_limit_and_its_bytes_are_those_of_an_undisturbed_run(
    folder: Path, slurm: RealSlurm
) -> None:
    scored = Path(os.environ[probe.LOG])
    job = submit("label", "corpus.jsonl", "--output", "undisturbed", *LABEL, "--nodes", "2")
    assert phf("jobs", job, "--follow").exit_code == 0, Store().files(job).log.read_text()
    # Nothing looks like a failure at the end.
    log = Store().files(job).log.read_text()
    assert "The dataset is in" in log
    assert not re.search("Traceback|srun|slurmstepd|SIGTERM", log), log

    scored.unlink()
    hold = scored.with_name(f"{scored.name}.hold")
    hold.write_text("4")
    job = submit("label", "corpus.jsonl", "--output", "requeued", *LABEL, "--stop-before", "30")
    wait(job, "running", until=lambda: scored.is_file() and len(scored.read_text().splitlines()) >= 4)
    # Slurm signals the job before the limit, which now comes within two minutes.
    minutes = (time.time() - Store().files(job).read_events()[1].time) // 60 + 2
    slurm.run("scontrol", "update", f"JobId={slurm_number(job)}", f"TimeLimit={int(minutes)}")
    wait(job, "requeued")
    hold.unlink()
    assert phf("jobs", job, "--follow").exit_code == 0, Store().files(job).log.read_text()
    assert data_of(folder / "requeued") == data_of(folder / "undisturbed")
    events = [event.what for event in Store().files(job).read_events()]
    assert events == ["submitted", "started", "ended", "started", "ended"]


def test_training_on_two_nodes_that_loses_one_ends_with_the_weights_of_an_undisturbed_run(
    folder: Path, slurm: RealSlurm
) -> None:
    ranks = ("--nodes", "2", "--tasks", "1", "--sbatch-option=--exclude=n3")
    long = {"training__num_tokens": 4 * 32 * 300, "training__save_every": 25}
    plain = train("plain", *ranks, **long)
    assert phf("jobs", plain, "--follow").exit_code == 0, Store().files(plain).log.read_text()
    job = train("disturbed", *ranks, **long)
    checkpoints = folder / "disturbed" / "checkpoints"
    wait(job, "running", until=lambda: checkpoints.is_dir() and any(checkpoints.glob("*/COMMITTED")))
    slurm.kill_node("n2")
    wait(job, "requeued")
    slurm.start_node("n2")
    assert phf("jobs", job, "--follow").exit_code == 0, Store().files(job).log.read_text()
    assert weights("disturbed") == weights("plain")
    assert [event.what for event in Store().files(job).read_events()].count("started") == 2


def test_a_cancelled_job_saves_its_work_and_is_not_requeued(folder: Path) -> None:
    job = train("cancelled", training__num_tokens=1e7)
    wait(job, "running", until=(folder / "cancelled" / "metrics.jsonl").is_file)
    assert phf("submit", "train", *RESOURCES, *Store().find(job).words[1:]).exit_code == 2  # type: ignore[union-attr]
    assert phf("jobs", job, "--cancel").exit_code == 0
    wait(job, "cancelled")
    assert facts(job)["exit_status"] == 75
    assert any((folder / "cancelled" / "checkpoints").glob("*/COMMITTED"))
    waiting = train("waiting", "--sbatch-option=--begin=now+1hour")
    assert facts(waiting)["state"] == "queued"
    waiting_words = Store().find(waiting).words[1:]  # type: ignore[union-attr]
    with pytest.MonkeyPatch.context() as patch:
        # Another user has records of their own.
        patch.setenv("XDG_STATE_HOME", str(folder.parent / "another"))
        refused = phf("submit", "train", *RESOURCES, *waiting_words)
    assert (refused.exit_code, f"job {slurm_number(waiting)} of root" in refused.stderr) == (2, True), refused.output
    assert phf("jobs", waiting, "--cancel").exit_code == 0
    wait(waiting, "cancelled")
    for path in Store().files(job).folder.iterdir():
        assert "hf_abc" not in path.read_text(errors="replace")
        assert path.stat().st_mode & 0o077 == 0


def test_a_sweep_is_an_array_and_then_a_comparison(folder: Path) -> None:
    spec = {
        "dataset": "pep8",
        "out": "sweep",
        "objectives": ["mle", "conditional"],
        "settings": {
            "task": "pep8",
            "model": {"name": "nano"},
            "data": {"vocab_size": 300, "context_length": 64},
            "training": {"num_tokens": 20 * 4 * 64, "batch_size": 4, "validate_every": 0},
            "tracking": {"tensorboard": False},
        },
        "evaluate": {"num_samples": 6, "max_new_tokens": 12, "leakage_samples": 2, "held_out_documents": 4},
    }
    real_runs.make_code_dataset(folder / "pep8", 10)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec))
    job = submit("sweep", "sweep.yaml")
    followed = phf("jobs", job, "--follow")
    assert followed.exit_code == 0, Store().files(job).log.read_text()
    assert facts(job)["tasks"] == {"mle-s42": "finished", "conditional-s42": "finished"}
    assert (folder / "sweep" / "comparison" / "index.html").is_file()
    events = Store().files(job).read_events()
    assert {event.task for event in events if event.what == "ended"} == {"0", "1", "-"}
