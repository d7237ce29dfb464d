"""`phf label` as a process: its output, lost workers and signals, and `phf status`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline import probe
from tests.pipeline.label_job import Labelling, alive, data_hashes, descendants, wait_for

pytestmark = pytest.mark.slow

CANARY = "xyzzy-canary"


def status_of(made: Labelling, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "phf", "status", str(made.output), *options],
        cwd=made.folder,
        env=made.env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_prints_its_progress_and_summary(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    made.write([f"{CANARY} one of {number}. Two. Three." for number in range(40)] + [""])
    with (made.corpus / "corpus.jsonl").open("a") as file:
        file.write(f"{CANARY} is no JSON\n")
    made.hold(20)
    process = made.start("--unit-size", "500", "--max-quarantined", "1")
    wait_for(lambda: len(made.committed()) > 1 or process.poll() is not None)

    def shown() -> str:
        return " ".join(status_of(made).stdout.split())

    wait_for(lambda: "labelling on" in shown())
    assert json.loads(status_of(made, "--json").stdout)["state"] == "running"
    assert re.search(r"units \d+ of \d+ committed", shown())
    made.release()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr

    # Only our own lines: no warning from Ray or another library, and no text of the corpus.
    ours = r"(Loading|Reading|Starting Ray|Labelling|Counting|Sealing).*"
    assert all(re.fullmatch(ours, line) for line in stderr.splitlines()), stderr
    assert CANARY not in stdout + stderr
    shown = " ".join(stdout.split())
    for part in (
        "Labelled 41 of 42 records, 120 sentences",
        "documents 40 and 1 empty",
        "quarantined 1 (not-json 1), 2.4% of the records",
        "probe probe",
        "(p50)",
        f"The dataset is in {made.output} (1 shard",
        f"phf verify {made.output}",
    ):
        assert part in shown

    status = json.loads(status_of(made, "--json").stdout)
    assert status["state"] == "sealed"
    assert status["committed"] == status["units"] > 3
    assert (status["records"], status["empty"], status["quarantined"]) == (42, 1, {"not-json": 1})
    assert status["run"]["state"] == "done"
    assert "labelled and sealed" in status_of(made).stdout

    facts = json.loads(made.run("--unit-size", "500", "--max-quarantined", "1", "--json").stdout)
    assert facts["already_done"] is True
    assert facts["share_quarantined"] == 1 / 42
    assert facts["columns"]["probe"]["aligned"] >= 60
    result = made.run("--unit-size", "500")
    assert result.returncode == 3
    assert "1 record is in quarantine (2.4% of 42); --max-quarantined is 0" in " ".join(result.stderr.split())
    assert "phf inspect" in result.stdout, "the summary comes all the same"


def test_a_unit_that_fails_as_a_whole_is_given_up_and_the_others_are_committed(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    texts = [f"{CANARY} one of {number:02}. Two. Three. {'x' * 400}" for number in range(12)]
    texts[4] += probe.KILL_ONCE
    texts[7] += probe.KILL_BESIDE_OTHERS
    made.write(texts)
    process = made.start("--unit-size", "1000", "--set", "execution.attempts=2")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 4, stderr
    message = " ".join(stderr.split())
    assert "1 unit could not be labelled" in message
    assert "unit 00000003: each record can be scored alone, but not all together (worker-died: SIGKILL)" in message
    assert "2 times" in message
    assert "Unit 00000002 is retried record by record, because it lost a worker: its process died" in message
    assert made.committed() == {0, 1, 2, 4, 5}
    assert not (made.output / "manifest.json").exists()
    assert "Traceback" not in message
    assert CANARY not in stdout + stderr
    status = json.loads(status_of(made, "--json").stdout)
    assert (status["state"], status["run"]["state"], status["run"]["failed"]) == ("stopped", "incomplete", ["00000003"])
    assert "The same `phf label` command resumes it" in status_of(made).stdout


def test_a_scorer_with_workers_of_its_own_gives_the_same_bytes(tmp_path: Path) -> None:
    # Ray is configured with a GPU that does not exist; the scorer does not use it.
    made = Labelling(tmp_path, env={"RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'})
    made.write([f"One of {number}. Two. Three. {'x' * 300}" for number in range(40)] + [""])
    made.write(["One.", "Two. Three."], "second.jsonl")
    options = ("--scorer", "other=gpu_probe", "--unit-size", "2000")
    made.run_undisturbed(*options, output=tmp_path / "together")
    result = made.run(*options, "--set", "execution.pools.other=cuda", output=tmp_path / "apart")
    assert result.returncode == 0, result.stderr
    assert data_hashes(tmp_path / "apart") == data_hashes(tmp_path / "together")
    parts = sorted(path.name for path in (tmp_path / "apart" / "units/0001/00000").glob("00000000.*.parquet"))
    assert parts == ["00000000.cpu.parquet", "00000000.other.parquet"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_ray_starts_stops_cleanly(tmp_path: Path, sent: signal.Signals) -> None:
    made = Labelling(tmp_path)
    made.write(["One."])
    process = made.start()
    assert process.stderr is not None
    while "Starting Ray" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(1)
    helpers = descendants(process.pid)
    # Ctrl-C reaches every process of the terminal's process group.
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "the same command continues" in stderr
    assert "Traceback" not in stderr
    wait_for(lambda: not alive(helpers))


def test_a_signal_once_the_dataset_is_sealed_changes_no_status(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    made.write(["One. Two."])
    process = made.start()
    assert process.stdout is not None
    while "Labelled" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "Stopped" not in stderr


def test_status_without_a_job_is_refused(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    for place in (made.output, made.corpus):
        made.output = place
        result = status_of(made)
        assert result.returncode == 2
        assert str(place) in result.stderr
        assert "Traceback" not in result.stderr
