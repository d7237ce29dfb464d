"""Records that kill their process: the others get the same scores as beside a refused record."""

import json
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.pipeline import probe
from tests.pipeline.label_job import Labelling, alive, data_hashes, descendants, wait_for

pytestmark = pytest.mark.slow

CANARY = "xyzzy-canary"


def quarantined(output: Path) -> dict[int, tuple[str, str]]:
    """Reason and detail by position; each record once."""
    tables = [pq.read_table(path) for path in sorted(output.glob("ledger/*/quarantine-*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    found = {row["position"]: (row["reason"], row["detail"]) for row in rows}
    assert len(found) == len(rows)
    return found


def positions(output: Path) -> list[int]:
    """Positions of the rows of the dataset, in order."""
    return [
        position
        for path in sorted((output / "data").rglob("*.parquet"))
        for position in pq.read_table(path, columns=["position"])["position"].to_pylist()
    ]


def offsets(made: Labelling) -> list[int]:
    """Position of each record of the corpus."""
    found, at = [], 0
    for line in (made.corpus / "corpus.jsonl").read_bytes().splitlines(keepends=True):
        found.append(at)
        at += len(line)
    return found


def test_only_records_that_kill_their_process_are_quarantined(tmp_path: Path) -> None:
    texts = [f"{CANARY} one of {number:02}. Two. Three. {'x' * 300}" for number in range(40)]
    poison = {4: probe.SEGFAULT, 13: probe.HANG_IN_C, 14: probe.EXIT, 25: probe.EAT_MEMORY}
    for index, what in poison.items():
        texts[index] += what
    texts[33] += probe.KILL_ONCE
    made = Labelling(tmp_path / "disturbed", scorer="probe=poison_probe")
    calm = Labelling(tmp_path / "calm", scorer="probe=poison_probe", env={probe.MILD: "1"})
    made.write(texts)
    calm.write(texts)
    options = ("--unit-size", "2000", "--set", "execution.attempts=2", "--max-quarantined", "3")
    # The oracle: the same scorer refuses these four texts, and does not die on the fifth.
    calm.log.with_suffix(".killed").touch()
    refused = calm.run_without_ray(*options)
    assert refused.returncode == 3, refused.stderr

    process = made.start(
        *(*options, "--set", "execution.memory_limit=900MB"),
        *("--set", "execution.unit_deadline_s=20", "--set", "execution.deadlines.probe=1"),
    )
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 3, stderr
    assert "4 records are in quarantine" in " ".join(stderr.split())
    at = offsets(made)
    assert quarantined(made.output) == {
        at[4]: ("worker-died", "probe: SIGSEGV, 2 times"),
        at[13]: ("worker-hung", "probe: no progress for 6.26 s, 2 times"),
        at[14]: ("worker-died", "probe: exit status 3, 2 times"),
        at[25]: ("memory-limit", "probe: more than 900 MB of memory, 2 times"),
    }
    assert positions(made.output) == [each for index, each in enumerate(at) if index not in poison]
    assert data_hashes(made.output) == data_hashes(calm.output)
    # A record that killed a worker once is not poison, and no unit was given up.
    assert stderr.count("is retried record by record") == 4
    assert CANARY not in stdout + stderr
    progress = json.loads((made.output / "job" / "progress.json").read_text())
    assert (progress["state"], progress["failed"]) == ("done", [])


def test_only_a_100_mb_document_that_exceeds_the_memory_limit_is_quarantined(tmp_path: Path) -> None:
    made = Labelling(tmp_path, scorer="probe=poison_probe")
    made.write([f"{CANARY} {number}.\n" * 10 for number in range(6)])
    large = (CANARY + " " * 80 + "\n") * (100_000_000 // 93) + probe.EAT_MEMORY
    made.write([large], "large.jsonl")
    process = made.start(
        *("--set", "kind=python", "--set", "max_record_size=200MB", "--max-document-size", "200MB"),
        *("--max-quarantined", "1"),
        *("--set", "execution.memory_limit=2GB", "--set", "execution.attempts=1"),
    )
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr
    assert quarantined(made.output) == {0: ("memory-limit", "probe: more than 2,000 MB of memory, once")}
    assert len(positions(made.output)) == 6
    assert CANARY not in stdout + stderr


def test_a_scorer_that_dies_on_any_text_quarantines_nothing(tmp_path: Path) -> None:
    made = Labelling(tmp_path, scorer="probe=poison_probe", env={probe.DIE_ALWAYS: "1"})
    made.write([f"{CANARY} {number}." for number in range(4)])
    process = made.start("--set", "execution.attempts=1", "--unit-size", "1MB")
    stdout, stderr = process.communicate(timeout=500)
    message = " ".join(stderr.split())
    assert process.returncode == 4, stderr
    assert "its scorers cannot score even a short test text (worker-died: SIGKILL), 1 times" in message
    assert not (made.output / "manifest.json").exists()
    assert CANARY not in stdout + stderr


def test_stopping_during_isolation_leaves_no_process_behind(tmp_path: Path) -> None:
    made = Labelling(tmp_path, scorer="probe=poison_probe")
    made.write([f"{CANARY} {number}. {'x' * 100}" for number in range(8)] + [probe.HANG_IN_C])
    options = ("--unit-size", "500", "--set", "execution.unit_deadline_s=6", "--max-quarantined", "1")
    process = made.start(*options, "--set", "execution.attempts=9")

    def child() -> set[int]:
        return {
            pid for pid in descendants(process.pid) if "pipeline.labelling.workers.isolation_child" in command_of(pid)
        }

    wait_for(lambda: bool(child()) or process.poll() is not None, seconds=200)
    helpers = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 75, stderr
    assert CANARY not in stdout + stderr
    # No labelling process is left. Ray's own helpers check for their head only occasionally, and may end later.
    assert not {pid for pid in alive(helpers) if "isolated" in command_of(pid)}

    process = made.start(*options, "--set", "execution.attempts=1")
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr
    assert list(quarantined(made.output).values()) == [("worker-hung", "probe: no progress for 6 s, once")]
    assert len(positions(made.output)) == 8
    wait_for(lambda: not alive(helpers), seconds=100)


def command_of(pid: int) -> str:
    """A process's command line; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
