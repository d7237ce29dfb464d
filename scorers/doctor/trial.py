"""Builds one scorer and measures it for about a second: the part that runs in a process of its own.

A library that crashes or is killed then takes no more with it than this process, whose memory is the scorer's alone.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scorers.contract import Document, DocumentKind, Execution, Scorer, ScoringError
from scorers.deadline import DeadlineExceededError
from scorers.doctor.sample import sample
from scorers.errors import UserError
from scorers.fingerprint import collected_facts
from scorers.isolation import describe
from scorers.registry import ScorerSpec, build, given_field, runs_on_gpu
from scorers.requirements import require_device
from scorers.sentences import document
from scorers.stopwatch import stopwatch
from scorers.text import utf8_size

# Characters scored at first, and at most at once: what a worker gets at once by default.
_FIRST, _MOST = 2_000, 256 * 1024

_PRECISIONS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


def try_scorer(column: str, spec: ScorerSpec, execution: Execution, seconds: float) -> dict[str, Any]:
    """Whether the scorer runs, on what it is based, and how fast it is on built-in text, as JSON values.

    `problem` is None where it runs, else why it does not; what was found out before stands beside it. The speed is that
    of the largest set of documents that was scored, on text that the scorer had not seen.
    """
    if not runs_on_gpu(spec):
        execution = execution.model_copy(update={"device": "cpu"})
    found: dict[str, Any] = {"device": execution.device, "problem": None}
    try:
        require_device(execution.device)
        began = time.perf_counter()
        with collected_facts() as facts:
            scorer = build(column, spec, execution)
        found["fingerprint"] = scorer.fingerprint
        found["libraries"] = {name: each for one in facts for name, each in one["libraries"].items()}
        found["sha256"] = {name: each for one in facts for name, each in one["files"].items()}
        found["precision"] = _precision(scorer)
        field = given_field(column, spec)
        kind: DocumentKind = "prose" if scorer.applies(document("A sentence.")) else "python"
        documents = _documents(kind, field)
        first = [next(documents)]
        scorer.score(first)  # loads what is loaded lazily
        found["ready_s"] = time.perf_counter() - began
        measured = _measure(scorer, documents, seconds) | {"on": kind}
        found["measured"] = measured
        if sum(measured["failures"].values()) == measured["documents"] > 0:
            found["problem"] = f"It fails on every document: {', '.join(measured['failures'])}."
    except UserError as error:
        found["problem"] = str(error)
    except (Exception, DeadlineExceededError) as error:  # noqa: BLE001 - whatever a library raises is a reason
        found["problem"] = f"It fails: {describe(error)}."
    found["memory"] = _peak_memory()
    return found


def _documents(kind: DocumentKind, field: str | None) -> Iterator[Document]:
    for text in sample(kind):
        each = document(text, kind)
        yield each if field is None else replace(each, given={field: [0.5] * len(each.ends)})


def _measure(scorer: Scorer, documents: Iterator[Document], seconds: float) -> dict[str, Any]:
    best: dict[str, Any] = {}
    failures: Counter[str] = Counter()
    size, tried, stop = _FIRST, 0, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        batch = list(_batch(documents, size))
        if not batch:
            break
        with stopwatch() as took:
            results = scorer.score(batch)
        tried += len(batch)
        failures.update(each.reason for each in results if isinstance(each, ScoringError))
        sentences = sum(len(each.ends) for each in batch)
        best = {
            "seconds": took.seconds,
            "sentences": sentences,
            "bytes": sum(utf8_size(each.text) for each in batch),
        }
        # Large sets are what a worker gets, but the next one should fit into the time that is left.
        if 4 * took.seconds < stop - time.perf_counter():
            size = min(_MOST, 4 * size)
    return best | {"documents": tried, "failures": dict(failures)}


def _batch(documents: Iterator[Document], characters: int) -> Iterator[Document]:
    for each in documents:
        yield each
        characters -= len(each.text)
        if characters <= 0:
            return


def _precision(scorer: Scorer) -> str | None:
    """What a network computes in, as the scorer's attribute `precision` says; None for a scorer without one."""
    said = getattr(scorer, "precision", None)
    return None if said is None else _PRECISIONS.get(str(said), str(said))


def _peak_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
