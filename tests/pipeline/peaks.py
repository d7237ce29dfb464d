"""Measure the memory of `phf label`: a scorer that does nothing, corpora of any size, and the processes' peaks."""

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, Execution, ScoringError, SemanticOptions
from tests.pipeline.label_job import ROOT, descendants

_METADATA = "Metadata-Version: 2.1\nName: phf-idle\nVersion: 1.0\n"
_ENTRY_POINTS = "[phf.scorers]\nidle = tests.pipeline.peaks:IdleScorer\n"
_LINES_A_RECORD = 40


class IdleScorer:
    """Scores every sentence with 0 immediately."""

    Options = SemanticOptions
    main_option: str | None = None
    runs_on_gpu = False

    def __init__(self, name: str, options: SemanticOptions, execution: Execution) -> None:
        self.name = name
        self.fingerprint = "idle"

    def applies(self, document: Document) -> bool:
        return True

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        return [np.zeros(len(each.ends), np.float32) for each in documents]


def write_corpus(path: Path, size: int) -> None:
    """Write about `size` bytes of distinct JSON lines, before compression; the suffix is `.jsonl` or `.gz`."""
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as file:
        written = 0
        for line in _lines():
            written += file.write(line)
            if written >= size:
                return


def _lines() -> Iterator[bytes]:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5_000)]
    sentences = [" ".join(rng.choices(words, k=12)) for _ in range(5_000)]
    for number in itertools.count():
        chosen = (rng.randrange(len(sentences)) for _ in range(_LINES_A_RECORD))
        text = "".join(f"{sentences[each]} {number}\n" for each in chosen)
        yield json.dumps({"id": f"record-{number}", "text": text}).encode() + b"\n"


@dataclass(frozen=True)
class Peaks:
    """Peak resident memory in bytes (VmHWM) of the driver and of the largest actor, and the job's duration."""

    driver: int
    actor: int
    seconds: float


def label_and_watch(folder: Path, corpus: Path, *options: str) -> Peaks:
    """Label a corpus into `folder/labelled` with two workers, split into lines, with `IdleScorer`.

    Raises:
        RuntimeError: the command failed; contains its output.
    """
    packages = folder / "site-packages"
    metadata = packages / "phf_idle-1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "entry_points.txt").write_text(_ENTRY_POINTS)
    (metadata / "METADATA").write_text(_METADATA)
    command = [
        *(sys.executable, "-m", "phf", "label", str(corpus), "--output", str(folder / "labelled")),
        *("--scorer", "idle=idle", "--kind", "python", "--workers", "2", *options),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
    began = time.monotonic()
    with (folder / "printed").open("w+") as printed:
        process = subprocess.Popen(command, env=env, stdout=printed, stderr=printed, cwd=folder, start_new_session=True)
        driver = actor = 0
        while process.poll() is None:
            driver = max(driver, _peak(process.pid))
            actor = max([actor, *(_peak(pid) for pid in descendants(process.pid) if _is_actor(pid))])
            time.sleep(0.1)
        if process.returncode:
            printed.seek(0)
            raise RuntimeError(printed.read()[-2000:])
    return Peaks(driver, actor, time.monotonic() - began)


def _is_actor(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::LabelActor")
    except OSError:
        return False


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) * 1024 if found else 0
