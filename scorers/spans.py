"""Findings of scorers that count things in a text, such as personal data.

A scorer that can show its findings has a method `findings`, which is all that `phf preview --redact` needs.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from scorers.contract import Document, ScoringError

Span = tuple[int, int]


class Finding(NamedTuple):
    """Something found in a sentence.

    Attributes:
        start, end: half open, in code points of the sentence, or of the document after `moved`.
        type: for example `email` or `name`.
    """

    start: int
    end: int
    type: str

    def moved(self, offset: int) -> "Finding":
        """Return the finding with its offsets in a text that holds the sentence at `offset`."""
        return Finding(self.start + offset, self.end + offset, self.type)


@runtime_checkable
class ShowsFindings(Protocol):
    """A scorer whose score of a sentence counts findings in it."""

    def findings(self, documents: Sequence[Document]) -> list[list[list[Finding]] | ScoringError]:
        """Return the findings in each sentence of each document, in order, or why it could not be scored."""
        ...


def merged(spans: Iterable[Span]) -> list[Span]:
    """Sort spans, and merge those that overlap or touch."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def redacted(text: str, findings: Iterable[Finding]) -> str:
    """Replace each finding in the text by its type: `Mail {{EMAIL}} now`.

    Findings that overlap or touch are replaced together by all their types, as in `{{ADDRESS+ORGANISATION}}`.
    """
    found = sorted(findings)
    parts: list[str] = []
    done = 0
    for start, end in merged((each.start, each.end) for each in found):
        types = dict.fromkeys(each.type.upper() for each in found if start <= each.start and each.end <= end)
        parts += [text[done:start], "{{", "+".join(types), "}}"]
        done = end
    return "".join([*parts, text[done:]])
