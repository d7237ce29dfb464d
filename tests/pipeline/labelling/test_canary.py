"""Text of the corpus appears only in the dataset's own columns, whatever scorers and records do."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pipeline import leaky
from tests.pipeline.label_job import Labelling
from tests.pipeline.network import free_port

pytestmark = pytest.mark.slow

# The columns that contain text by design.
TEXT = ("text", "meta", "doc_id")


def write_corpus(made: Labelling, markers: tuple[str, ...]) -> None:
    """Write records, valid or not, with the canary in all their parts."""
    canary = leaky.CANARY
    records = [
        {"id": f"{canary} {number}", "text": f"{canary}. {number} {canary}.", canary: canary} for number in range(8)
    ]
    records += [
        {"id": marker, "text": f"{canary} {'filler ' * 60}{marker}", "meta": {canary: [canary]}} for marker in markers
    ]
    records += [
        {"id": "nul", "text": f"{canary}\x00{canary}", "meta": canary},
        {"id": "number", "text": 5, "meta": canary},
        {"id": {canary: canary}, "text": canary},
        {"id": "surrogate", "text": f"\ud800{canary}", "meta": canary},
        {"id": "surrogate-meta", "text": "fine.", "meta": f"{canary}\udfff"},
        {"text": f"{canary} without an id."},
        {"id": canary, canary: canary},
    ]
    lines = [json.dumps(record).encode() for record in records]
    lines += [json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass") for record in records[-7:]]
    lines += [
        f'{{"text": "{canary}'.encode(),
        f"{canary} is no JSON".encode(),
        f'["{canary}"]'.encode(),
        f'{{"text": "{canary} \xff"}}'.encode("latin-1", "replace"),
        f'{{"text": "x", "{canary}": {canary}}}'.encode(),
        canary.encode("utf-16"),
        b'{"text": "' + b"x" * 3000 + canary.encode() + b'"}',
    ]
    (made.corpus / "corpus.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (made.corpus / "cut.jsonl.gz").write_bytes(leaky.cut_stream())


@contextlib.contextmanager
def repeating(action: Callable[[], None]) -> Iterator[None]:
    """Repeat an action in a thread while the context is active, and once more at the end."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(0.05):
            with contextlib.suppress(OSError):
                action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def keep_links(folder: Path, kept: Path) -> None:
    """Hard-link every file below a folder, so that its content outlives its deletion."""
    for path in folder.rglob("*"):
        target = kept / path.relative_to(folder)
        if path.is_file() and not path.is_symlink() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                os.link(path, target)


def records(output: Path) -> list[Path]:
    """Commit records, which hold references to quarantined records."""
    return sorted((output / "units").rglob("*.json"))


def check_dataset(output: Path, *, keep: bool = False) -> None:
    """Check that the canary is only where it must be below a sealed output; `keep`: quarantine keeps text."""
    columns = {"units", "data", "ledger"}
    inner = [path for path in output.iterdir() if path.name not in columns]
    assert {path.name for path in inner} >= {"job", "manifest.json", "README.md"}
    assert list(leaky.leaks(inner)) == []
    kept = ("text",) if keep else ()
    assert list(leaky.leaks([*records(output), output / "ledger"], allowed=kept)) == []
    assert list(leaky.leaks([output / "units", output / "data"], allowed=TEXT)) == []


@pytest.fixture
def cores() -> Iterator[None]:
    """Allow core dumps."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="phf-c", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def prepared(folder: Path, markers: tuple[str, ...]) -> Labelling:
    made = Labelling(folder, scorer="probe=leaky")
    leaky.install(folder / "site-packages")
    write_corpus(made, markers)
    return made


def test_no_text_leaks_when_scorers_raise_print_crash_and_hang(tmp_path: Path, temporary: Path, cores: None) -> None:
    made = prepared(tmp_path, (*leaky.POISON, *leaky.DEADLY))
    (session := temporary / "t").mkdir()
    (kept := temporary / "kept").mkdir()
    (seen := tmp_path / "seen").mkdir()
    port = free_port()
    made.env |= {"TMPDIR": str(session), "RAY_metrics_report_interval_ms": "1000", "PYTHONFAULTHANDLER": "1"}
    pages = {"metrics": b"", "progress": b""}
    scrape_at = 0.0

    def look() -> None:
        nonlocal scrape_at
        keep_links(session, kept)
        # Metrics do not change faster, and each page costs Ray's agent some time.
        if time.monotonic() >= scrape_at:
            scrape_at = time.monotonic() + 1
            with contextlib.suppress(OSError):
                pages["metrics"] = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2).read()
        pages["progress"] = (made.output / "job" / "progress.json").read_bytes()

    with repeating(look):
        process = made.start(
            *("--unit-size", "600", "--log", "run.log", "--metrics-port", str(port)),
            *("--set", "execution.unit_deadline_s=5", "--set", "execution.attempts=2"),
            *("--set", "execution.deadline_s=0.5", "--set", "max_record_size=2500", "--max-quarantined", "100"),
        )
        stdout, stderr = process.communicate(timeout=500)
    for name, content in {"stdout": stdout.encode(), "stderr": stderr.encode(), **pages}.items():
        (seen / name).write_bytes(content)
    for options in ((), ("--json",), ("--watch",)):
        shown = subprocess.run(
            [sys.executable, "-m", "phf", "status", str(made.output), *options],
            cwd=tmp_path,
            env=made.env,
            capture_output=True,
            check=False,
        )
        (seen / f"status{len(options)}{options[-1:]}").write_bytes(shown.stdout + shown.stderr)

    # All intended failures happened, and the search ran in time to see them.
    events = [json.loads(line) for line in (tmp_path / "run.log").read_text().splitlines()]
    assert sum(event["event"] == "worker-lost" for event in events) >= len(leaky.DEADLY)
    assert process.returncode in {0, 4}, stderr
    assert "raylet" not in stdout, "that is for results"
    assert b"ray_phf_units_committed_total" in pages["metrics"]
    logs = [path.name for path in kept.rglob("*") if path.is_file()]
    assert any(name.startswith("worker-") and name.endswith(".err") for name in logs), logs
    assert any(name.startswith("raylet") for name in logs), logs

    places = [path for path in tmp_path.iterdir() if path not in {made.corpus, made.output, tmp_path / "site-packages"}]
    assert list(leaky.leaks([*places, kept])) == []
    inner = [path for path in made.output.iterdir() if path.name not in {"units", "data"}]
    assert {path.name for path in inner} >= {"job"}
    assert list(leaky.leaks(inner)) == []
    assert list(leaky.leaks(records(made.output))) == []
    assert list(leaky.leaks([made.output / "units"], allowed=TEXT)) == []
    assert not [
        path
        for root in (tmp_path, session, kept)
        for path in root.rglob("core*")
        if path.is_file() and path.name.split(".")[0] == "core"
    ]


def test_quarantine_keeps_text_only_in_its_own_column(tmp_path: Path) -> None:
    made = prepared(tmp_path, leaky.POISON)
    result = made.run_without_ray(
        *("--unit-size", "600", "--log", "run.log", "--set", "execution.deadline_s=0.5", "--max-quarantined", "100"),
        *("--set", "max_record_size=2500", "--set", "quarantine_text=true"),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    check_dataset(made.output, keep=True)
    assert list(leaky.leaks([tmp_path / "run.log"])) == []
    quarantine = sorted((made.output / "ledger").rglob("quarantine*"))
    assert list(leaky.leaks(quarantine)), "it keeps the text, which is found where it is"
