"""Findings of scorers that know where in a text they found something, such as personal data or a violation of style.

Such a scorer has a method `locate`, which gives scores and findings in one pass. `phf preview --redact` and the columns
`<column>_spans` of a dataset need nothing else.
"""

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, ScoringError

Span = tuple[int, int]

LONGEST_TYPE = 64
"""Most characters of a type."""


class Finding(NamedTuple):
    """Something found in a text.

    Attributes:
        start, end: half open, in code points of a document, or of a sentence.
        type: for example `email`, `name` or the code of a violated rule; see `is_type`.
        score: the scorer's confidence, finite and >= 0; 1 for scorers that have none.
    """

    start: int
    end: int
    type: str
    score: float = 1.0

    def moved(self, offset: int) -> "Finding":
        """Return the finding with its offsets in a text that holds this one at `offset`."""
        return self._replace(start=self.start + offset, end=self.end + offset)


@dataclass(frozen=True)
class Located:
    """A document's scores, float32 [n_sentences], and its findings, in its code points, sorted.

    Each finding lies in a single sentence, whose score is above 0.
    """

    scores: NDArray[np.float32]
    findings: list[Finding]


@runtime_checkable
class LocatesFindings(Protocol):
    """A scorer that knows where it found what its scores count.

    Attributes:
        redacts: whether readers are to be spared what it finds: personal data are, violations of style are not.
    """

    redacts: bool

    def locate(self, documents: Sequence[Document]) -> list[Located | ScoringError]:
        """Return for each document the scores that `score` returns, with the findings, or why it has none."""
        ...


def scores_of(results: Iterable[Located | ScoringError]) -> list[NDArray[np.float32] | ScoringError]:
    """Return what `Scorer.score` returns, from the results of `LocatesFindings.locate`."""
    return [each if isinstance(each, ScoringError) else each.scores for each in results]


def is_type(text: object) -> bool:
    """Return whether a text can be the type of a finding: 1 to `LONGEST_TYPE` printable characters without braces."""
    return isinstance(text, str) and 0 < len(text) <= LONGEST_TYPE and text.isprintable() and not {*text} & {*"{}"}


def why_invalid(
    findings: Sequence[Finding], ends: Sequence[int], scores: Sequence[float] | NDArray[np.float32]
) -> str | None:
    """Return what is wrong with the findings of a document, without quoting it; None if nothing is.

    Args:
        findings: in code points of the document.
        ends: exclusive ends of its sentences.
        scores: a score per sentence.
    """
    before = (0, 0)
    for start, end, kind, score in findings:
        sentence = bisect.bisect_right(ends, start)
        if start < 0 or end <= start or sentence == len(ends) or end > ends[sentence]:
            return "a span is empty or not inside a sentence"
        if not scores[sentence] > 0:
            return "a span is in a sentence whose score is not above 0"
        if (start, end) < before:
            return "its spans are not sorted"
        if not is_type(kind):
            return f"the type of a span is not 1 to {LONGEST_TYPE} printable characters without braces"
        if not (math.isfinite(score) and score >= 0):
            return "the score of a span is negative, NaN or infinite"
        before = (start, end)
    return None


def by_sentence(findings: Iterable[Finding], ends: Sequence[int]) -> list[list[Finding]]:
    """Return the findings of each sentence, in its code points; `ends` are those of the document's sentences."""
    result: list[list[Finding]] = [[] for _ in ends]
    for each in findings:
        sentence = bisect.bisect_right(ends, each.start)
        result[sentence].append(each.moved(-ends[sentence - 1] if sentence else 0))
    return result


def merged(spans: Iterable[Span]) -> list[Span]:
    """Sort spans, and merge those that overlap or touch."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def overlapping(places: Sequence[Span], spans: Iterable[Span]) -> NDArray[np.bool_]:
    """Return which places overlap a span, bool [places]; fast also where a long text has many of both."""
    starts, ends = np.array(merged(spans), dtype=np.int64).reshape(-1, 2).T
    begin, end = np.array(places, dtype=np.int64).reshape(-1, 2).T
    # The first span that ends after a place begins overlaps it, or none does.
    starts = np.append(starts, np.iinfo(np.int64).max)
    found: NDArray[np.bool_] = starts[np.searchsorted(ends, begin, side="right")] < end
    return found


def redacted(text: str, findings: Iterable[Finding]) -> str:
    """Replace each finding in the text by its type: `Mail {{EMAIL}} now`.

    Findings that overlap or touch are replaced together by all their types, as in `{{ADDRESS+ORGANISATION}}`.
    """
    found = sorted(findings)
    parts: list[str] = []
    done = index = 0
    for start, end in merged((each.start, each.end) for each in found):
        types: dict[str, None] = {}
        while index < len(found) and found[index].start < end:
            types[found[index].type.upper()] = None
            index += 1
        parts += [text[done:start], "{{", "+".join(types), "}}"]
        done = end
    return "".join([*parts, text[done:]])
