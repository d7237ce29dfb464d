"""Labelling that is stopped, killed or overtaken ends with the same bytes as an undisturbed run."""

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.pipeline import probe
from tests.pipeline.label_job import Labelling, alive, data_hashes, descendants, wait_for

pytestmark = pytest.mark.slow

TEXTS = [f"Sentence one of {number}. And a second one, {number * number}. " * 20 for number in range(120)]
UNITS = ("--unit-size", "10500")
COUNT = 11


def labelling(folder: Path) -> Labelling:
    made = Labelling(folder)
    made.write(TEXTS)
    return made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Labelling:
    """A finished run."""
    made = labelling(tmp_path_factory.mktemp("undisturbed"))
    made.run_undisturbed(*UNITS)
    assert len(made.committed()) == COUNT
    assert made.scored() == Counter(map(probe.key, TEXTS))
    return made


def start_and_hold(made: Labelling) -> "subprocess.Popen[str]":
    """Start labelling; returns when two more units are committed and the workers are held in others."""
    before = len(made.committed())
    # A unit has eleven or twelve texts. The log also contains texts that an earlier run scored in vain.
    made.hold(made.scored().total() + 23)
    process = made.start(*UNITS)
    wait_for(lambda: len(made.committed()) >= before + 2 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    assert 0 < len(made.committed()) < COUNT
    return process


def test_a_killed_driver_loses_nothing_and_scores_nothing_twice(undisturbed: Labelling, tmp_path: Path) -> None:
    made = labelling(tmp_path)
    process = start_and_hold(made)
    workers = {pid for pid in descendants(process.pid) if "LabelActor" in command(pid)}
    assert len(workers) == 2
    process.kill()
    process.communicate()

    # The workers die by themselves, and commit nothing more.
    committed = made.committed()
    wait_for(lambda: not alive(workers), seconds=30)
    assert made.committed() == committed
    assert 0 < len(committed) < COUNT
    before = made.scored()
    made.release()

    result = made.run(*UNITS)
    assert result.returncode == 0, result.stderr
    assert f"{len(committed)} of {COUNT} units are already labelled" in result.stderr
    assert data_hashes(made.output) == data_hashes(undisturbed.output)
    settled = texts_of(made, committed)
    assert settled
    assert all(made.scored()[text] == before[text] == 1 for text in settled)
    assert set(made.scored()) == set(map(probe.key, TEXTS))
    assert not (made.output / "staging").exists()


def texts_of(made: Labelling, units: set[int]) -> set[str]:
    """Keys of the texts of committed units."""
    return {
        probe.key(text)
        for unit in units
        for text in pq.read_table(made.output / f"units/0001/00000/{unit:08d}.cpu.parquet", columns=["text"])[
            "text"
        ].to_pylist()
    }


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_signals_stop_cleanly_and_the_same_command_resumes(undisturbed: Labelling, tmp_path: Path) -> None:
    made = labelling(tmp_path)
    process = start_and_hold(made)
    process.terminate()
    # `ray job stop` signals every process of a job, and `phf-again` passes its signal on.
    stdout, stderr = finish_stopping(made, process, repeat=True)
    assert process.returncode == 75, stderr
    assert "the same command continues" in " ".join(stderr.split())
    assert "Traceback" not in stderr
    assert stdout == ""
    first = made.committed()
    assert 2 < len(first) < COUNT, "what was being worked on is finished"
    status = json.loads((made.output / "job/progress.json").read_text())
    assert (status["state"], status["committed"]) == ("stopped", len(first))

    # Ctrl-C in a terminal reaches every process of the group, including Ray's.
    process = start_and_hold(made)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = finish_stopping(made, process)
    assert process.returncode == 75, stderr
    assert "Traceback" not in stderr
    assert len(first) < len(made.committed()) < COUNT
    settled, before = texts_of(made, made.committed()), made.scored()

    result = made.run(*UNITS)
    assert result.returncode == 0, result.stderr
    assert data_hashes(made.output) == data_hashes(undisturbed.output)
    assert settled
    assert all(made.scored()[text] == before[text] for text in settled)


def finish_stopping(made: Labelling, process: "subprocess.Popen[str]", *, repeat: bool = False) -> tuple[str, str]:
    """Release the workers once the driver reports that it is stopping."""
    assert process.stderr is not None
    before = ""
    while "Stopping" not in before:
        line = process.stderr.readline()
        assert line, before
        before += line
    if repeat:
        process.terminate()
    made.release()
    stdout, stderr = process.communicate(timeout=60)
    return stdout, before + stderr


def test_the_newer_of_two_drivers_wins(undisturbed: Labelling, tmp_path: Path) -> None:
    made = labelling(tmp_path)
    older = start_and_hold(made)
    newer = made.start(*UNITS)
    # The older driver notices the newer one even while it waits for its workers.
    _, stderr = older.communicate(timeout=90)
    assert older.returncode == 75, stderr
    assert "newer" in stderr
    made.release()
    _, stderr = newer.communicate(timeout=90)
    assert newer.returncode == 0, stderr
    assert data_hashes(made.output) == data_hashes(undisturbed.output)
    epochs = {json.loads(path.read_text())["epoch"] for path in (made.output / "units").rglob("*.json")}
    assert epochs == {1, 2}


def test_a_finished_job_is_left_alone_and_a_changed_one_refused(undisturbed: Labelling) -> None:
    before = snapshot(undisturbed.output)

    def again(*options: str) -> "subprocess.CompletedProcess[str]":
        result = undisturbed.run_without_ray(*UNITS, *options)
        assert snapshot(undisturbed.output) == before
        assert "Ray" not in result.stderr
        return result

    result = again()
    assert result.returncode == 0
    assert "already" in result.stdout
    assert json.loads(again("--json").stdout)["already_done"] is True

    result = again("--set", "scorers.probe.version=2", "--text-field", "text", "--id-field", "name")
    assert result.returncode == 2
    message = " ".join(result.stderr.split())
    assert "scorers.probe.version: was 1, now 2" in message
    assert "id_field: was 'id', now 'name'" in message
    assert "text_field" not in message

    result = again("--set", "thresholds.probe=0.5")
    assert result.returncode == 2
    assert "thresholds.probe: was 'p50', now '0.5'" in result.stderr
    assert "phf retag" in result.stderr

    manifest = undisturbed.output / "manifest.json"
    content, times = manifest.read_bytes(), manifest.stat()
    manifest.write_bytes(b"{")
    assert undisturbed.run_without_ray(*UNITS).returncode == 0
    assert manifest.read_bytes() == content
    os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = snapshot(undisturbed.output)

    undisturbed.env["PHF_PROBE_FINGERPRINT"] = "other"
    result = again()
    del undisturbed.env["PHF_PROBE_FINGERPRINT"]
    assert result.returncode == 2
    assert "fingerprint was probe-1-, now probe-1-other" in " ".join(result.stderr.split())


def test_a_lost_unit_of_a_finished_job_is_labelled_again(undisturbed: Labelling) -> None:
    data, manifest = data_hashes(undisturbed.output), (undisturbed.output / "manifest.json").read_bytes()
    part = undisturbed.output / "units/0001/00000/00000003.cpu.parquet"
    content, lost, before = part.read_bytes(), texts_of(undisturbed, {3}), undisturbed.scored()
    part.unlink()
    result = undisturbed.run_without_ray(*UNITS)
    # The dataset is whole without the unit; commands that need it recommend the repair.
    assert result.returncode == 0, result.stderr
    (undisturbed.output / "units/0001/00000/00000003.json").unlink()
    result = undisturbed.run_without_ray(*UNITS)
    assert result.returncode == 0, result.stderr
    assert undisturbed.scored() - before == Counter(lost)
    assert part.read_bytes() == content
    assert data_hashes(undisturbed.output) == data
    assert (undisturbed.output / "manifest.json").read_bytes() == manifest


def test_changed_inputs_are_refused_by_name(undisturbed: Labelling) -> None:
    before = snapshot(undisturbed.output)
    corpus = undisturbed.corpus / "corpus.jsonl"
    content = corpus.read_bytes()

    def refused() -> str:
        result = undisturbed.run_without_ray(*UNITS)
        assert result.returncode == 2, result.stdout
        assert snapshot(undisturbed.output) == before
        return result.stderr

    try:
        (undisturbed.corpus / "more.jsonl").write_bytes(content)
        assert "new: corpus/more.jsonl" in refused()
        (undisturbed.corpus / "more.jsonl").unlink()
        corpus.write_bytes(content + content[:200])
        assert "changed: corpus/corpus.jsonl" in refused()
        corpus.write_bytes(content.replace(b"Sentence", b"sentence", 1))
        assert "changed: corpus/corpus.jsonl" in refused()
        corpus.rename(undisturbed.corpus / "other.jsonl")
        message = refused()
        assert "gone: corpus/corpus.jsonl" in message
        assert "new: corpus/other.jsonl" in message
    finally:
        for path in undisturbed.corpus.iterdir():
            path.unlink()
        corpus.write_bytes(content)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
