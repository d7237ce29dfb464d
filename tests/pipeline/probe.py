"""The probe: a third-party scorer, installed through an entry point, that behaves as the texts request.

It logs each document that it scores as a line in the file `PHF_PROBE_LOG`, so that tests can count. While a file of
that name with the suffix `.hold` exists, scoring waits once as many documents are scored as it says. Each process that
scores creates a file of that name with the suffix `.by-PID`.
"""

import ctypes
import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, Execution, ScoringError, SemanticOptions

LOG = "PHF_PROBE_LOG"
KILL = "KILL-THE-WORKER"
KILL_ONCE = "KILL-THE-WORKER-ONCE"
RAISE = "RAISE-AN-ERROR"
# If set, the scorer raises on any text.
RAISE_ALWAYS = "PHF_PROBE_RAISE_ALWAYS"
KILL_BESIDE_OTHERS = "KILL-THE-WORKER-BESIDE-OTHERS"

# If set, these texts are refused with a ScoringError, instead of what they request.
MILD = "PHF_PROBE_MILD"
# If set, the scorer dies on any text.
DIE_ALWAYS = "PHF_PROBE_DIE_ALWAYS"
SEGFAULT, HANG_IN_C, EXIT, EAT_MEMORY = "SEGFAULT", "HANG-IN-C", "EXIT-AT-ONCE", "EAT-MEMORY"

ENTRY_POINTS = """[phf.scorers]
poison_probe = tests.pipeline.probe:PoisonProbeScorer
probe = tests.pipeline.probe:ProbeScorer
gpu_probe = tests.pipeline.probe:GpuProbeScorer
"""
METADATA = "Metadata-Version: 2.1\nName: phf-probe\nVersion: 1.0\n"


class ProbeOptions(SemanticOptions):
    """`delay_s` is in seconds per call; `version` exists only to be changed."""

    delay_s: float = 0.0
    version: int = 1


class ProbeScorer:
    """Scores a sentence by its length. `KILL` in a text kills the process, `KILL_ONCE` only the first time.

    `KILL_BESIDE_OTHERS` kills it unless it is the only text of the call.
    """

    Options = ProbeOptions
    main_option = "delay_s"
    runs_on_gpu = False

    def __init__(self, name: str, options: ProbeOptions, execution: Execution) -> None:
        self.name = name
        self.fingerprint = f"probe-{options.version}-{os.environ.get('PHF_PROBE_FINGERPRINT', '')}"
        self._options = options

    def applies(self, document: Document) -> bool:
        return True

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        time.sleep(self._options.delay_s)
        log = Path(os.environ[LOG])
        log.with_suffix(f".by-{os.getpid()}").touch()
        _wait_while_held(log)
        for document in documents:
            if KILL_ONCE in document.text:
                once = log.with_suffix(".killed")
                if not once.exists():
                    once.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            elif KILL_BESIDE_OTHERS in document.text:
                if len(documents) > 1:
                    os.kill(os.getpid(), signal.SIGKILL)
            elif KILL in document.text:
                os.kill(os.getpid(), signal.SIGKILL)
        if RAISE_ALWAYS in os.environ or any(RAISE in document.text for document in documents):
            raise ValueError("a document that this scorer cannot bear")
        # Workers share the file; the kernel appends a single write atomically.
        lines = "".join(f"{key(document.text)}\n" for document in documents)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)
        return [np.diff(document.ends, prepend=0).astype(np.float32) / 1000 for document in documents]


class GpuProbeScorer(ProbeScorer):
    """A probe that claims to support a GPU."""

    runs_on_gpu = True


class PoisonProbeScorer(ProbeScorer):
    """Dies, hangs or exhausts memory on texts that request it.

    A sentence's score is its share of all characters of the call, so it depends on the other texts.
    """

    runs_on_gpu = True

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        if DIE_ALWAYS in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        results = super().score(documents)
        total = sum(len(document.text) for document in documents)
        for index, document in enumerate(documents):
            results[index] = (np.diff(document.ends, prepend=0) / total).astype(np.float32)
            for poison, fall in _FALLS.items():
                if poison in document.text:
                    if MILD in os.environ:
                        results[index] = ScoringError("refused")
                    else:
                        fall(document.text)
        return results


def _eat_memory(text: str) -> None:
    eaten = []
    while True:
        eaten.append(bytes(len(text)) + b"x" * 20_000_000)
        time.sleep(0.01)


_FALLS: dict[str, Callable[[str], object]] = {
    SEGFAULT: lambda text: ctypes.string_at(0),
    # Hold the GIL, so that neither signal handlers nor other threads run.
    HANG_IN_C: lambda text: ctypes.PyDLL(None).sleep(1000),
    EXIT: lambda text: os._exit(3),
    EAT_MEMORY: _eat_memory,
}


def _wait_while_held(log: Path) -> None:
    while True:
        try:
            limit = int(log.with_suffix(".hold").read_text())
            if not log.exists() or len(log.read_text().split()) < limit:
                return
        except FileNotFoundError:
            return
        time.sleep(0.02)


def key(text: str) -> str:
    """The key of a text in the log."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def install(folder: Path) -> None:
    """Make a folder on Python's path look as if the package `phf-probe` were installed there."""
    metadata = folder / "phf_probe-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (metadata / "METADATA").write_text(METADATA)
