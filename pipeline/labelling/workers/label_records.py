"""Split and score records, and quarantine those that cannot be scored.

Large documents are cut at sentence boundaries into parts of bounded size; groups of parts are scored together.
"""

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pipeline.config import MAX_DOCUMENT_SIZE
from pipeline.corpus.records import Quarantined, Record
from pipeline.dataset.manifest import PURGED
from pipeline.job.purged import Key, tombstone
from pipeline.labelling.workers.scoring import SCORER_ERROR, Locating, Scores, placeholder, score_documents
from scorers.contract import Document, Scorer, ScoringError
from scorers.describe_error import describe
from scorers.sentences import document
from scorers.spans import Finding, Located
from scorers.text import utf8_size

LargeDocuments = Literal["split", "quarantine"]


@dataclass(frozen=True, slots=True)
class Part:
    """Sentences `[start, stop)` of a document: all of them, unless the document is large.

    Attributes:
        document: index of the document.
        start, stop: sentence indices.
        size: UTF-8 bytes of the sentences' text.
    """

    document: int
    start: int
    stop: int
    size: int

    def of(self, document: Document) -> Document:
        """The part as a document, with ends relative to the part's start."""
        if self.start == 0 and self.stop == len(document.ends):
            return document
        first = self.offset(document)
        ends = document.ends[self.start : self.stop] - first
        return Document(
            document.text[first : first + int(ends[-1])], ends, document.kind, document.name, self._given(document)
        )

    def offset(self, document: Document) -> int:
        """Where the part begins in the document's text, in code points."""
        return int(document.ends[self.start - 1]) if self.start else 0

    def _given(self, document: Document) -> Mapping[str, Any] | None:
        """The part's slice of lists with a value per sentence; other lists are kept for the scorer to refuse."""
        return document.given and {
            field: values[self.start : self.stop]
            if isinstance(values, list) and len(values) == len(document.ends)
            else values
            for field, values in document.given.items()
        }


def groups(documents: Sequence[Document], limit: int) -> Iterator[list[Part]]:
    """Yield all sentences of all documents in order, as groups of parts to be scored together.

    The groups depend only on the documents and the limit, so that batches of networks are reproducible. A document of
    at most `limit` bytes is one part. A larger one is cut into parts as large as the limit allows; a sentence longer
    than the limit is a part of its own. A group holds at most `limit` bytes, or a single part.
    """
    group: list[Part] = []
    size = 0
    for index, each in enumerate(documents):
        for part in _parts(index, each, limit):
            if group and size + part.size > limit:
                yield group
                group, size = [], 0
            group.append(part)
            size += part.size
    if group:
        yield group


def _parts(index: int, document: Document, limit: int) -> Iterator[Part]:
    whole = utf8_size(document.text)
    if whole <= limit:
        yield Part(index, 0, len(document.ends), whole)
        return
    start = size = previous = 0
    for sentence, end in enumerate(document.ends.tolist()):
        length = utf8_size(document.text[previous:end])
        previous = end
        if size and size + length > limit:
            yield Part(index, start, sentence, size)
            start, size = sentence, 0
        size += length
    yield Part(index, start, len(document.ends), size)


SPLIT = "split"
SPLIT_ERROR = "split-error"
TOO_LARGE_DOCUMENT = "too-large-document"

# By key of a record and by column or `split`: the error to report instead of trying the record.
KnownErrors = Mapping[tuple[str, int], Mapping[str, ScoringError]]


@dataclass(frozen=True)
class Scored:
    """A record with its document, its scores, and its findings.

    Attributes:
        scores: by column, float32 [n_sentences]; None where a scorer doesn't apply.
        spans: by column of a scorer that locates, its findings in the document; None where it doesn't apply.
    """

    record: Record
    document: Document
    scores: dict[str, Scores | None]
    spans: dict[str, list[Finding] | None] = field(default_factory=dict)


@dataclass
class Labelled:
    """Results, each list in the order of the records, and seconds by column and for `read` and `split`."""

    scored: list[Scored] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def label_records(
    records: Iterable[Record | Quarantined],
    scorers: Mapping[str, Scorer],
    *,
    max_document_size: int = MAX_DOCUMENT_SIZE,
    large_documents: LargeDocuments = "split",
    keep_text: bool = False,
    known_errors: KnownErrors | None = None,
    purged: Collection[Key] = (),
) -> Labelled:
    """Split and score records; quarantine those that cannot be scored, without effect on the others.

    Scorers get at most `max_document_size` of text at once, or a single longer sentence: the parts of a large document
    are scored like documents, and their scores are joined into one row. The whole text is split into sentences before
    it is cut into parts.

    Args:
        records: all records of a unit; scores may depend on the set of documents in the last bits.
        scorers: by column, `Locating` ones with their findings; if several fail on a record, the first gives the
            reason.
        max_document_size: UTF-8 bytes of text above which a document is large.
        large_documents: how to treat large documents; large Python files are always quarantined, because linters need
            the whole file.
        keep_text: whether quarantine keeps the text.
        known_errors: errors to report without trying: the scorer gets a placeholder instead of the record.
        purged: keys of records to replace by their tombstones in the same way, so that the others keep their scores.

    Raises:
        ScorerFailedError: a scorer fails on any document.
    """
    labelled = Labelled()
    known_errors = known_errors or {}
    with timed(labelled.seconds, "read"):
        items = list(records)
    with timed(labelled.seconds, "split"):
        outcomes = [
            each if isinstance(each, Quarantined) else _split(each, max_document_size, large_documents, known_errors)
            for each in items
        ]
    documents = [each for each in outcomes if isinstance(each, Document)]
    removed = dict.fromkeys(scorers, ScoringError(PURGED))
    reasons = [
        removed if (each.source, each.position) in purged else known_errors.get((each.source, each.position), {})
        for each, outcome in zip(items, outcomes, strict=True)
        if isinstance(outcome, Document)
    ]
    columns = {}
    for column, scorer in scorers.items():
        with timed(labelled.seconds, column):
            refused = {index: each[column] for index, each in enumerate(reasons) if column in each}
            columns[column] = _Column(scorer, documents, refused)
    for group in groups(documents, max_document_size):
        parts = [part.of(documents[part.document]) for part in group]
        for column, results in columns.items():
            with timed(labelled.seconds, column):
                results.score(group, parts)
    index = 0
    for record, outcome in zip(items, outcomes, strict=True):
        key = (record.source, record.position)
        if isinstance(record, Quarantined):
            labelled.quarantined.append(tombstone(key) if key in purged else record)
            continue
        scores: dict[str, Scores | None] = {}
        spans: dict[str, list[Finding] | None] = {}
        error = outcome if isinstance(outcome, ScoringError) else None
        if isinstance(outcome, Document):
            for column, results in columns.items():
                result = results.of(index)
                if isinstance(result, ScoringError):
                    error = error or ScoringError(result.reason, f"{column}: {result.detail}")
                    continue
                scores[column] = None if result is None else result.scores
                if isinstance(scorers[column], Locating):
                    spans[column] = None if result is None else result.findings
            index += 1
            if error is None and key not in purged:
                labelled.scored.append(Scored(record, outcome, scores, spans))
        if key in purged:
            labelled.quarantined.append(tombstone(key))
        elif error is not None:
            text = record.text if keep_text else None
            labelled.quarantined.append(Quarantined(record.source, record.position, error.reason, error.detail, text))
    return labelled


class _Column:
    """A scorer's results for some documents, joined from their parts."""

    def __init__(self, scorer: Scorer, documents: Sequence[Document], refused: Mapping[int, ScoringError]) -> None:
        self._scorer = scorer
        self._documents = documents
        # By document: the results of its parts so far, the error, or None where the scorer does not apply.
        self._results = [
            self._empty_result(replace(placeholder(each), given=each.given) if index in refused else each)
            for index, each in enumerate(documents)
        ]
        self._wanted = [
            isinstance(result, list) and len(each.ends) > 0
            for result, each in zip(self._results, documents, strict=True)
        ]

        # Set errors only now: refused documents keep their place in the batches, as placeholders.
        for index, error in refused.items():
            self._results[index] = error

    def score(self, group: Sequence[Part], parts: Sequence[Document]) -> None:
        wanted = [index for index, part in enumerate(group) if self._wanted[part.document]]
        lost = {index for index in wanted if isinstance(self._results[group[index].document], ScoringError)}
        if len(lost) == len(wanted):
            return
        # Another part of a lost document has failed; placeholders keep the shapes of the batches.
        given = [placeholder(parts[index]) if index in lost else parts[index] for index in wanted]
        for index, result in zip(wanted, score_documents(self._scorer, given), strict=True):
            so_far = self._results[group[index].document]
            if isinstance(so_far, list):
                if isinstance(result, ScoringError):
                    self._results[group[index].document] = result
                elif isinstance(result, Located):
                    offset = group[index].offset(self._documents[group[index].document])
                    moved = [each.moved(offset) for each in result.findings] if offset else result.findings
                    so_far.append(Located(result.scores, moved))
                else:
                    so_far.append(Located(result, []))

    def of(self, document: int) -> Located | ScoringError | None:
        result = self._results[document]
        if not isinstance(result, list):
            return result
        if len(result) == 1:
            return result[0]
        scores = np.concatenate([*(each.scores for each in result), np.zeros(0, np.float32)])
        return Located(scores, [finding for each in result for finding in each.findings])

    def _empty_result(self, document: Document) -> list[Located] | ScoringError | None:
        try:
            return [] if self._scorer.applies(document) else None
        except ScoringError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a library's failure on odd input becomes a value
            return ScoringError(SCORER_ERROR, describe(error))


def _split(record: Record, limit: int, policy: LargeDocuments, known_errors: KnownErrors) -> Document | ScoringError:
    known = known_errors.get((record.source, record.position), {}).get(SPLIT)
    if known is not None:
        return ScoringError(known.reason, f"{SPLIT}: {known.detail}")
    size = utf8_size(record.text)
    if size > limit and (policy == "quarantine" or record.kind == "python"):
        why = "" if policy == "quarantine" else "; Python is never split"
        return ScoringError(TOO_LARGE_DOCUMENT, f"{size} bytes of text, more than max_document_size = {limit}{why}")
    try:
        if record.ends is not None:
            return Document(record.text, np.array(record.ends, np.int32), record.kind, record.name, record.given)
        found = document(record.text, record.kind, record.name)
        return found if record.given is None else replace(found, given=record.given)
    except Exception as error:  # noqa: BLE001 - a library's failure on odd input becomes a value
        return ScoringError(SPLIT_ERROR, describe(error))


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that the block takes to `seconds[name]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
