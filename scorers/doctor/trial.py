"""Build one scorer and measure it for about a second, in a process of its own.

A library that crashes ends only this process, and the process's memory is that of the scorer alone.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scorers.contract import Document, DocumentKind, Execution, Scorer, ScoringError
from scorers.deadline import DeadlineExceededError
from scorers.describe_error import describe
from scorers.doctor.sample import sample
from scorers.errors import UserError
from scorers.fingerprint import collect_facts
from scorers.registry import ScorerSpec, build, given_field, runs_on_gpu
from scorers.requirements import require_device
from scorers.sentences import document
from scorers.stopwatch import stopwatch
from scorers.text import utf8_size

# Characters in the first batch, and in the largest, which is a worker's default.
_FIRST, _MOST = 2_000, 256 * 1024

_PRECISIONS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


def try_scorer(column: str, spec: ScorerSpec, execution: Execution, seconds: float) -> dict[str, Any]:
    """Return whether the scorer runs, what it is based on, and its speed on built-in text, as JSON values.

    `problem` is None if it runs, else says why not; whatever was found before that is kept. The speed is that of the
    last batch scored, usually the largest, of text that the scorer had not seen.
    """
    if not runs_on_gpu(spec):
        execution = execution.model_copy(update={"device": "cpu"})
    found: dict[str, Any] = {"device": execution.device, "problem": None}
    try:
        require_device(execution.device)
        began = time.perf_counter()
        with collect_facts() as facts:
            scorer = build(column, spec, execution)
        found["fingerprint"] = scorer.fingerprint
        found["libraries"] = {name: each for one in facts for name, each in one["libraries"].items()}
        found["sha256"] = {name: each for one in facts for name, each in one["files"].items()}
        found["precision"] = _precision(scorer)
        field = given_field(column, spec)
        kind: DocumentKind = "prose" if scorer.applies(document("A sentence.")) else "python"
        documents = _documents(kind, field)
        first = [next(documents)]
        scorer.score(first)  # triggers lazy loading
        found["ready_s"] = time.perf_counter() - began
        measured = _measure(scorer, documents, seconds) | {"on": kind}
        found["measured"] = measured
        if sum(measured["failures"].values()) == measured["documents"] > 0:
            found["problem"] = f"It fails on every document: {', '.join(measured['failures'])}."
    except UserError as error:
        found["problem"] = str(error)
    except (Exception, DeadlineExceededError) as error:  # noqa: BLE001 - a library may raise anything
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
        # Approach a worker's batch size, but the next batch should fit into the time that is left.
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
    """Return the dtype that the scorer's network computes in, by its attribute `precision`; None if it has none."""
    dtype = getattr(scorer, "precision", None)
    return None if dtype is None else _PRECISIONS.get(str(dtype), str(dtype))


def _peak_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
