"""How fast scorers are on a corpus, and what labelling it would cost; in this process, and nothing is written.

Scorers get what a worker gives them: the documents of a unit, through `label_records`. A scorer that is too slow for
whole units in the time it has gets the leading documents of each.
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
from pipeline.labelling.prepare import resolve_config
from pipeline.labelling.workers.label_records import Labelled, label_records
from scorers.contract import Execution, Scorer
from scorers.doctor.machine import processor
from scorers.errors import UserError
from scorers.isolation import describe
from scorers.registry import ScorerSpec, build, runs_on_gpu
from scorers.requirements import require_device
from scorers.stopwatch import stopwatch
from scorers.text import utf8_size

# Text on which a scorer loads what it loads lazily, and then text from which its speed is guessed.
_WARM_UP, _GUESS = 2_000, 8_000
# Slices that are scored however long they take: of fewer nobody could say how much they differ.
_LEAST_SLICES = 3
# Of the time, for slices whose speed says how large the others can be.
_FIRST_ROUND = 0.2


@dataclass(frozen=True)
class Slice:
    """What scoring some documents took: seconds of a core, and bytes of their text, not scored ones included."""

    seconds: float
    size: int


@dataclass
class Measured:
    """One step of labelling on the sample.

    Attributes:
        name: the column, or `read` or `split`.
        kind: of the scorer; empty for the others.
        device: what it ran on.
        slices: one a piece of the sample.
        calls: of the scorer, each with some documents of a piece.
        documents, sentences, size: that it scored, the size in UTF-8 bytes.
        left_out: documents to which it does not apply.
        failed: documents by the reason why they have no score.
        waited_s: beside `seconds`, waiting for a core that others were using.
        ready_s: seconds to build it.
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
        """Of all slices."""
        return sum(each.seconds for each in self.slices)

    @property
    def seconds_a_byte(self) -> Estimate:
        """Of the corpus's text; what it does not apply to counts as text that takes no time."""
        return ratio([each.seconds for each in self.slices], [each.size for each in self.slices])


@dataclass(frozen=True)
class Bench:
    """What was measured, and on what.

    Attributes:
        sample: of the corpus.
        threads: that a scorer computed with.
        unit_size: of the job, what a worker gets at a time.
        total: bytes of text for which the cost is given.
        steps: read, split, and the scorers in their order.
    """

    sample: CorpusSample
    threads: int
    unit_size: int
    total: float
    steps: list[Measured]

    def hours(self, step: Measured) -> Estimate:
        """Hours of a core, or of a GPU, that the step takes for `total` bytes of text."""
        cores = 1 if step.device != "cpu" else self.threads if step.kind else 1
        return step.seconds_a_byte.times(self.total * cores / 3600)

    def share(self, step: Measured) -> float:
        """Of the seconds of all steps one after the other, in [0, 1]."""
        total = sum(each.seconds_a_byte.value for each in self.steps)
        return step.seconds_a_byte.value / total if total else 0.0

    def together(self, *, on_gpu: bool) -> Estimate:
        """Hours of all steps on cores, or on GPUs. The range is that of steps that err together: none is wider."""
        parts = [self.hours(each) for each in self.steps if (each.device != "cpu") == on_gpu]
        return Estimate(
            sum(each.value for each in parts), sum(each.low for each in parts), sum(each.high for each in parts)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
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
        reporter: is told what is done.
        seconds: to measure each scorer for, beside building it; at least three slices are scored.
        limit: bytes of text to measure each scorer on, at most.
        device: of the scorers that can use one; None for what the job says.
        total: bytes of text to give the cost for; None for the corpus's own.

    Raises:
        UserError: as of `phf label`: inputs, settings or scorers that are not right.
    """
    resolved = resolve_config(config)
    sample = sample_corpus(resolved.config, reporter.measure)
    read = Measured("read", slices=[Slice(sample.read_s, sample.read_bytes)], size=sample.read_bytes)
    read.failed = sample.malformed
    split, pieces = _split(sample.pieces, config)
    steps = [read, split]
    for column, spec in resolved.specs.items():
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
    except Exception as error:  # noqa: BLE001 - a device that is not there fails in the words of a library
        raise UserError(
            f"The scorer {column!r} cannot be built on {execution.device!r}: {describe(error)}. `phf doctor` says what "
            "there is on this machine."
        ) from None
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(execution.threads)
    return scorer


def _split(pieces: Sequence[Records], config: LabelConfig) -> tuple[Measured, list[Records]]:
    """What splitting takes, and the pieces without the documents that cannot be labelled whatever the scorer."""
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
    """Score the pieces in rounds: the first finds out how much of each there is time for."""
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
            if not piece or (step.calls >= _LEAST_SLICES and time.perf_counter() >= stop):
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
    """The pieces without the documents that the scorer has seen by now, and a guess of its bytes a second."""
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
    """The first records, at least one, up to so many bytes of text."""
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
    """The same, its seconds without the share of the time in which others had the core."""
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
