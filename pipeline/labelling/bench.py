"""Measure the speed of scorers on a corpus and estimate the cost of labelling it.

Everything runs in this process, and nothing is written. Scorers get the documents of whole units through
`label_records`, as in a worker; a scorer that is too slow for that gets the leading documents of each unit.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import LabelConfig
from pipeline.corpus.sampling import CorpusSample, Records, sample_corpus, text_size
from pipeline.labelling.estimate import Estimate, ratio
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.resolve import resolve_config
from pipeline.labelling.workers.label_records import Labelled, label_records
from scorers.contract import Execution, Scorer
from scorers.describe_error import describe
from scorers.doctor.machine import processor
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, runs_on_gpu
from scorers.requirements import require_device
from scorers.stopwatch import stopwatch
from scorers.text import utf8_size

# Bytes of text for the warm-up, and for a first estimate of the speed.
_WARM_UP, _GUESS = 2_000, 8_000
# Slices that are scored however long they take; fewer would not show how much slices differ.
_MIN_SLICES = 3
# Share of the time for the first round, whose speed determines the size of the other slices.
_FIRST_ROUND = 0.2


@dataclass(frozen=True)
class Slice:
    """Seconds of a core for some documents, and bytes of their text, including documents that were not scored."""

    seconds: float
    size: int


@dataclass
class Measured:
    """The measurements of one labelling step on the sample.

    Attributes:
        name: the column, or `read` or `split`.
        kind: kind of the scorer; empty for `read` and `split`.
        device: device that the step ran on.
        slices: one per piece of the sample.
        calls: calls of the scorer, each with some documents of a piece.
        documents, sentences, size: what was scored; `size` in UTF-8 bytes.
        left_out: documents to which the scorer does not apply.
        failed: documents without a score, by reason.
        waited_s: seconds spent waiting for a busy core, not included in `seconds`.
        ready_s: seconds to build the scorer.
    """

    name: str
    kind: str = ""
    device: str = "cpu"
    slices: list[Slice] = field(default_factory=list)
    calls: int = 0
    documents: int = 0
    sentences: int = 0
    size: int = 0
    left_out: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    waited_s: float = 0.0
    ready_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of all slices."""
        return sum(each.seconds for each in self.slices)

    @property
    def seconds_a_byte(self) -> Estimate:
        """Seconds per byte of the corpus's text; text to which the scorer does not apply takes no time."""
        return ratio([each.seconds for each in self.slices], [each.size for each in self.slices])


@dataclass(frozen=True)
class Bench:
    """The result of a benchmark.

    Attributes:
        sample: sample of the corpus.
        threads: threads per scorer.
        unit_size: bytes of input that a worker gets at a time in the job.
        total: bytes of text to estimate the cost for.
        steps: read, split, and the scorers in order.
    """

    sample: CorpusSample
    threads: int
    unit_size: int
    total: float
    steps: list[Measured]

    def hours(self, step: Measured) -> Estimate:
        """Core hours or GPU hours that the step takes for `total` bytes of text."""
        cores = 1 if step.device != "cpu" else self.threads if step.kind else 1
        return step.seconds_a_byte.times(self.total * cores / 3600)

    def share(self, step: Measured) -> float:
        """The step's share of the seconds of all steps run one after the other, in [0, 1]."""
        total = sum(each.seconds_a_byte.value for each in self.steps)
        return step.seconds_a_byte.value / total if total else 0.0

    def together(self, *, on_gpu: bool) -> Estimate:
        """Hours of all steps on cores, or on GPUs. The interval assumes fully correlated errors, the widest case."""
        parts = [self.hours(each) for each in self.steps if (each.device != "cpu") == on_gpu]
        return Estimate(
            sum(each.value for each in parts), sum(each.low for each in parts), sum(each.high for each in parts)
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        sample = self.sample
        return {
            "corpus": {
                "sources": sample.sources,
                "bytes": sample.size,
                "bytes_planned": sample.planned,
                "units": sample.units,
                "units_sampled": sample.sampled_units,
                "text_bytes": sample.text_bytes,
                "left_out": [each.model_dump() for each in sample.left_out],
            },
            "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "threads": self.threads},
            "total_bytes": self.total,
            "steps": [self._step(each) for each in self.steps],
            "core_hours": self.together(on_gpu=False).to_dict(),
            "gpu_hours": self.together(on_gpu=True).to_dict(),
        }

    def _step(self, step: Measured) -> dict[str, Any]:
        seconds = step.seconds
        return {
            "name": step.name,
            "kind": step.kind or None,
            "device": step.device,
            "documents": step.documents,
            "sentences": step.sentences,
            "bytes": step.size,
            "slices": [{"seconds": each.seconds, "bytes": each.size} for each in step.slices],
            "seconds": seconds,
            "waited_s": step.waited_s,
            "ready_s": step.ready_s,
            "sentences_per_s": step.sentences / seconds if seconds else None,
            "bytes_per_s": step.size / seconds if seconds else None,
            "left_out": step.left_out,
            "failed": dict(step.failed),
            "share": self.share(step),
            "hours": self.hours(step).to_dict(),
        }


def bench_scorers(
    config: LabelConfig,
    reporter: Reporter,
    *,
    seconds: float,
    limit: int | None = None,
    device: str | None = None,
    total: float | None = None,
) -> Bench:
    """Measure the scorers of a job on a sample of its corpus.

    Args:
        config: the job.
        reporter: shows the progress.
        seconds: time to measure each scorer for, after it is built; at least three slices are scored.
        limit: most bytes of text to measure each scorer on.
        device: device of the scorers that can use one; None for the job's.
        total: bytes of text to estimate the cost for; None for the corpus itself.

    Raises:
        UserError: invalid inputs, settings or scorers, as in `phf label`.
    """
    config = resolve_config(config)
    sample = sample_corpus(config, reporter.measure)
    read = Measured("read", slices=[Slice(sample.read_s, sample.read_bytes)], size=sample.read_bytes)
    read.failed = sample.malformed
    split, pieces = _split(sample.pieces, config)
    steps = [read, split]
    for column, spec in config.scorers.items():
        reporter.step(f"Measuring {column}")
        execution = config.execution.of(column)
        if device is not None and runs_on_gpu(spec):
            execution = execution.model_copy(update={"device": device})
        began = time.perf_counter()
        scorer = _build(column, spec, execution)
        step = Measured(column, spec.kind, execution.device if runs_on_gpu(spec) else "cpu")
        step.ready_s = time.perf_counter() - began
        _measure(step, scorer, pieces, config, seconds, limit)
        steps.append(step)
    wanted = sample.text_bytes if total is None else total
    return Bench(sample, config.execution.threads, int(config.unit_size), wanted, steps)


def _build(column: str, spec: ScorerSpec, execution: Execution) -> Scorer:
    require_device(execution.device)
    try:
        scorer = build(column, spec, execution)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - libraries report a missing device in many ways
        raise UserError(
            f"The scorer {column!r} cannot be built on {execution.device!r}: {describe(error)}. `phf doctor` shows "
            "what this machine has."
        ) from None
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(execution.threads)
    return scorer


def _split(pieces: Sequence[Records], config: LabelConfig) -> tuple[Measured, list[Records]]:
    """Measure splitting; return the pieces without the documents that no scorer could label."""
    step = Measured("split")
    kept: list[Records] = []
    _label(pieces[-1][:1], {}, config)  # loads the splitter
    for piece in pieces:
        labelled = _timed(step, piece, {}, config)
        step.slices.append(Slice(labelled.seconds["split"], text_size(piece)))
        _count(step, labelled, None)
        kept.append([each.record for each in labelled.scored])
    return step, [each for each in kept if each]


def _measure(
    step: Measured, scorer: Scorer, pieces: Sequence[Records], config: LabelConfig, seconds: float, limit: int | None
) -> None:
    """Score the pieces in rounds; the first round measures how much of each piece there is time for."""
    stop = time.perf_counter() + seconds
    rest, speed = _warmed_up(scorer, step.name, pieces, config)
    slices = [Slice(0.0, 0)] * len(rest)
    share = _FIRST_ROUND
    while any(rest):
        left = stop - time.perf_counter()
        size = int(share * speed * max(left, 0.0) / len(rest))
        if limit is not None:
            size = min(size, (limit - sum(each.size for each in slices)) // len(rest))
        if step.calls and size <= 0:
            break
        began, done = time.perf_counter(), sum(each.size for each in slices)
        for index, piece in enumerate(rest):
            if not piece or (step.calls >= _MIN_SLICES and time.perf_counter() >= stop):
                continue
            given = _leading(piece, size)
            rest[index] = piece[len(given) :]
            labelled = _timed(step, given, {step.name: scorer}, config)
            before = slices[index]
            slices[index] = Slice(before.seconds + labelled.seconds[step.name], before.size + text_size(given))
            step.calls += 1
            _count(step, labelled, step.name)
        speed = max(sum(each.size for each in slices) - done, 1) / max(time.perf_counter() - began, 1e-6)
        share = 1.0
    step.slices = [each for each in slices if each.size]


def _warmed_up(
    scorer: Scorer, column: str, pieces: Sequence[Records], config: LabelConfig
) -> tuple[list[Records], float]:
    """Warm up the scorer; return the remaining documents and a first estimate of its bytes per second."""
    last = pieces[-1]
    warm = _leading(last, _WARM_UP)
    known = _leading(last[len(warm) :], _GUESS)
    rest = last[len(warm) + len(known) :]
    _label(warm, {column: scorer}, config)
    began = time.perf_counter()
    _label(known or warm, {column: scorer}, config)
    speed = max(text_size(known or warm), 1) / max(time.perf_counter() - began, 1e-6)
    kept = [*pieces[:-1], rest] if rest or len(pieces) > 1 else list(pieces)
    return [each for each in kept if each], speed


def _leading(records: Records, size: int) -> Records:
    """The leading records with about `size` bytes of text, at least one."""
    kept: Records = []
    for each in records:
        if kept and size <= 0:
            break
        kept.append(each)
        size -= text_size([each])
    return kept


def _label(records: Records, scorers: Mapping[str, Scorer], config: LabelConfig) -> Labelled:
    return label_records(
        records, scorers, max_document_size=config.max_document_size, large_documents=config.large_documents
    )


def _timed(step: Measured, records: Records, scorers: Mapping[str, Scorer], config: LabelConfig) -> Labelled:
    """Label records; the seconds exclude the time in which other processes had the core."""
    with stopwatch() as took:
        labelled = _label(records, scorers, config)
    step.waited_s += took.waited
    labelled.seconds = {name: seconds * took.share for name, seconds in labelled.seconds.items()}
    return labelled


def _count(step: Measured, labelled: Labelled, column: str | None) -> None:
    for each in labelled.scored:
        if column is not None and each.scores[column] is None:
            step.left_out += 1
            continue
        step.documents += 1
        step.sentences += len(each.document.ends)
        step.size += utf8_size(each.record.text)
    step.failed.update(each.reason for each in labelled.quarantined)
