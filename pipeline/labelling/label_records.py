"""From records to scores: split, score, and put in quarantine what cannot be scored."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.records import Quarantined, Record
from pipeline.labelling.scoring import score_documents
from scorers.contract import Document, Scorer, ScoringError
from scorers.isolation import describe
from scorers.sentences import document

SPLIT_ERROR = "split-error"


@dataclass(frozen=True)
class Scored:
    """A record with its document and its scores by column: float32 [n_sentences], None where a scorer doesn't apply."""

    record: Record
    document: Document
    scores: dict[str, NDArray[np.float32] | None]


@dataclass
class Labelled:
    """What became of some records, each list in their order, and the seconds by column, for `read` and `split`."""

    scored: list[Scored] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def label_records(
    records: Iterable[Record | Quarantined], scorers: Mapping[str, Scorer], *, keep_text: bool = False
) -> Labelled:
    """Split and score records; one that a scorer cannot score is quarantined and changes nothing for the others.

    Args:
        records: all of a unit: scorers get all documents at once, and scores may depend on the set in the last bits.
        scorers: by column; of several that fail on a record the first gives the reason.
        keep_text: whether quarantine keeps the text.

    Raises:
        ScorerFailedError: a scorer fails whatever it is given.
    """
    labelled = Labelled()
    with timed(labelled.seconds, "read"):
        items = list(records)
    with timed(labelled.seconds, "split"):
        outcomes = [each if isinstance(each, Quarantined) else _split(each) for each in items]
    documents = [each for each in outcomes if isinstance(each, Document)]
    columns: dict[str, Iterator[NDArray[np.float32] | ScoringError | None]] = {}
    for column, scorer in scorers.items():
        with timed(labelled.seconds, column):
            columns[column] = iter(_score_column(scorer, documents))
    for record, outcome in zip(items, outcomes, strict=True):
        if isinstance(record, Quarantined):
            labelled.quarantined.append(record)
            continue
        scores: dict[str, NDArray[np.float32] | None] = {}
        error = outcome if isinstance(outcome, ScoringError) else None
        if isinstance(outcome, Document):
            for column, results in columns.items():
                result = next(results)
                if isinstance(result, ScoringError):
                    error = error or ScoringError(result.reason, f"{column}: {result.detail}")
                else:
                    scores[column] = result
            if error is None:
                labelled.scored.append(Scored(record, outcome, scores))
        if error is not None:
            text = record.text if keep_text else None
            labelled.quarantined.append(Quarantined(record.source, record.position, error.reason, error.detail, text))
    return labelled


def _split(record: Record) -> Document | ScoringError:
    try:
        return document(record.text, record.kind, record.name)
    except Exception as error:  # noqa: BLE001 - a failure of a library on strange input becomes a value
        return ScoringError(SPLIT_ERROR, describe(error))


def _score_column(scorer: Scorer, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError | None]:
    results: list[NDArray[np.float32] | ScoringError | None] = [None] * len(documents)
    wanted = []
    for index, each in enumerate(documents):
        try:
            applies = scorer.applies(each)
        except Exception as error:  # noqa: BLE001 - a failure of a library on strange input becomes a value
            results[index] = ScoringError("scorer-error", describe(error))
            continue
        if applies and len(each.ends):
            wanted.append(index)
        elif applies:
            results[index] = np.zeros(0, np.float32)
    if wanted:
        for index, result in zip(wanted, score_documents(scorer, [documents[each] for each in wanted]), strict=True):
            results[index] = result
    return results


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block to those of `name`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
