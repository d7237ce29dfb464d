"""Sample a corpus: records of units spread evenly over all of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.config import MAX_DOCUMENT_SIZE, LabelConfig
from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.fields import settle_sentences
from pipeline.corpus.inputs import Source, find_inputs
from pipeline.corpus.plan import Unit
from pipeline.corpus.readers import UnitReader
from pipeline.corpus.records import Quarantined, Record
from pipeline.dataset.manifest import LeftOut
from scorers.errors import UserError
from scorers.stopwatch import stopwatch
from scorers.text import utf8_size

Progress = Callable[[str, int, int], None]
Records = list[Record]

# Number of sampled units; least number of pieces, for a corpus with fewer units.
_UNITS, _LEAST_PIECES = 16, 8
# Planning reads its inputs once; of a corpus larger than this, only some evenly spread sources are planned.
_MOST_PLANNED = 1_000_000_000
# Bytes kept of a unit, from its start: a scorer gets no more than this at once either.
_MOST_KEPT = MAX_DOCUMENT_SIZE


@dataclass(frozen=True)
class CorpusSample:
    """Records from all over a corpus.

    Attributes:
        pieces: lists of records, each from one unit or part of one, ordered so that every prefix is evenly spread.
        sources, size: number of files of the whole corpus, and their bytes on disk.
        planned: how many of these bytes were read to cut them into units.
        units: units of the planned sources.
        sampled_units: units that the records come from.
        text_bytes: estimated UTF-8 bytes of the whole corpus's text; exact if every unit was sampled.
        read_s, read_bytes: seconds spent reading, and the bytes of text read in that time.
        malformed: quarantined records met while sampling, by reason.
        left_out: the files among the inputs that are not read.
    """

    pieces: list[Records]
    sources: int
    size: int
    planned: int
    units: int
    sampled_units: int
    text_bytes: float
    read_s: float
    read_bytes: int
    malformed: Counter[str]
    left_out: list[LeftOut] = field(default_factory=list)


def sample_corpus(config: LabelConfig, progress: Progress) -> CorpusSample:
    """Read a sample of the inputs of a job.

    Args:
        config: the job; the sample is made of its units, the amount that a worker gets at a time.
        progress: called with the name of the step, bytes done and total bytes.

    Raises:
        UserError: the inputs or settings are invalid, as for `phf label`, or there is no record.
        OSError: a disk or network failed.
    """
    found = find_inputs(config.inputs, config.kind)
    sources = found.sources
    config = settle_sentences(sources, config)
    chosen = _spread_over(sources)
    total, done = sum(each.size for each in chosen), 0

    def on_read(_source: Source, size: int) -> None:
        nonlocal done
        done += size
        progress("Planning", done, total)

    plan = make_plan(config, on_read, sources=chosen)
    count = len(plan.units)
    if not count:
        raise UserError(f"There is no record in {', '.join(config.inputs)}.")
    indexes = [(2 * index + 1) * count // (2 * min(count, _UNITS)) for index in range(min(count, _UNITS))]
    pieces: list[Records] = []
    unit_bytes = read_bytes = 0
    read_s = 0.0
    malformed: Counter[str] = Counter()
    reader = UnitReader(plan, config)
    try:
        for number, index in enumerate(indexes):
            progress("Reading", number, len(indexes))
            unit = _read(reader, plan.units[index], malformed)
            pieces.append(unit.kept)
            unit_bytes += unit.size
            read_bytes += unit.timed_bytes
            read_s += unit.seconds
    finally:
        reader.close()
    size = sum(each.size for each in sources)
    planned = sum(each.size for each in plan.sources)
    return CorpusSample(
        pieces=spread(_cut(pieces)),
        sources=len(sources),
        size=size,
        planned=planned,
        units=count,
        sampled_units=len(indexes),
        text_bytes=unit_bytes / len(indexes) * count * (size / planned if planned else 1.0),
        read_s=read_s,
        read_bytes=read_bytes,
        malformed=malformed,
        left_out=found.left_out,
    )


def text_size(records: Sequence[Record]) -> int:
    """The size of the texts of records in UTF-8 bytes."""
    return sum(utf8_size(each.text) for each in records)


def spread(items: Sequence[Records]) -> list[Records]:
    """Reorder items so that every prefix is spread evenly over all of them."""
    bits = len(items).bit_length()
    # Van der Corput's sequence: 0, 1/2, 1/4, 3/4, 1/8, …
    places = (int(f"{number:0{bits}b}"[::-1], 2) * len(items) >> bits for number in range(1 << bits))
    return [items[index] for index in dict.fromkeys(places)]


@dataclass
class _UnitRead:
    kept: Records
    size: int = 0
    timed_bytes: int = 0
    seconds: float = 0.0


def _read(reader: UnitReader, unit: Unit, malformed: Counter[str]) -> _UnitRead:
    """Read a whole unit. The first record is not timed: reaching it in a compressed file reads everything before it."""
    found = _UnitRead([])
    records = reader.read(unit)
    first = next(records, None)
    if first is not None:
        _keep(found, first, malformed)
    before = found.size
    with stopwatch() as took:
        for each in records:
            _keep(found, each, malformed)
    found.timed_bytes, found.seconds = found.size - before, took.seconds
    return found


def _keep(found: _UnitRead, each: Record | Quarantined, malformed: Counter[str]) -> None:
    if isinstance(each, Quarantined):
        malformed[each.reason] += 1
        return
    found.size += text_size([each])
    if found.size <= _MOST_KEPT or not found.kept:
        found.kept.append(each)


def _spread_over(sources: Sequence[Source]) -> list[Source]:
    """All sources, or for a large corpus those at evenly spaced byte positions."""
    total = sum(each.size for each in sources)
    if total <= _MOST_PLANNED:
        return list(sources)
    chosen: list[Source] = []
    passed = number = 0
    for each in sources:
        passed += each.size
        if passed > (2 * number + 1) * total // (2 * _UNITS):
            chosen.append(each)
            while passed > (2 * number + 1) * total // (2 * _UNITS):
                number += 1
    return chosen


def _cut(pieces: list[Records]) -> list[Records]:
    """Cut the pieces into equal parts if there are fewer than `_LEAST_PIECES`."""
    parts = -(-_LEAST_PIECES // len(pieces))
    if parts == 1:
        return pieces
    return [
        piece[len(piece) * part // parts : len(piece) * (part + 1) // parts]
        for piece in pieces
        for part in range(parts)
        if len(piece) * (part + 1) // parts > len(piece) * part // parts
    ]
