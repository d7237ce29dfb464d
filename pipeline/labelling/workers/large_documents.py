"""Documents in pieces of bounded size: parts, cut at sentence boundaries, in groups that are scored at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scorers.contract import Document
from scorers.text import utf8_size

LargeDocuments = Literal["split", "quarantine"]


@dataclass(frozen=True, slots=True)
class Part:
    """Sentences `[start, stop)` of a document: the whole of it, unless it is large.

    Attributes:
        document: its index among those that are scored.
        start, stop: sentences.
        size: UTF-8 bytes of their text.
    """

    document: int
    start: int
    stop: int
    size: int

    def of(self, document: Document) -> Document:
        """The part as a document of its own, whose ends count from its start."""
        if self.start == 0 and self.stop == len(document.ends):
            return document
        first = int(document.ends[self.start - 1]) if self.start else 0
        ends = document.ends[self.start : self.stop] - first
        return Document(
            document.text[first : first + int(ends[-1])], ends, document.kind, document.name, self._given(document)
        )

    def _given(self, document: Document) -> Mapping[str, Any] | None:
        """Of lists with a value a sentence those of the part; a list of another length stays as wrong as it was."""
        return document.given and {
            field: values[self.start : self.stop]
            if isinstance(values, list) and len(values) == len(document.ends)
            else values
            for field, values in document.given.items()
        }


def groups(documents: Sequence[Document], limit: int) -> Iterator[list[Part]]:
    """All sentences of all documents in order, as groups of parts that are scored at once.

    They depend on the documents and the limit alone, as the batches of networks must. A document of at most `limit`
    bytes is one part. A larger one is cut into parts as long as the limit lets them be; a sentence that is longer than
    the limit is a part of its own. A group's parts have at most `limit` bytes together, or there is only one.
    """
    group: list[Part] = []
    size = 0
    for index, document in enumerate(documents):
        for part in _parts(index, document, limit):
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
