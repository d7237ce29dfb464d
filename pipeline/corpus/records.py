"""The values that readers yield: records to label, and quarantined ones with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scorers.contract import DocumentKind


@dataclass(frozen=True, slots=True)
class Record:
    """A document of the corpus. `(source, position)` is its key.

    Attributes:
        source: URI of the input that holds it.
        position: its byte offset in a plain `.jsonl` file, else the index of the record in its source.
        doc_id: the corpus's own id, or `source#position`.
        text: the unchanged raw text; it can be encoded as UTF-8.
        meta: the other fields as a JSON object.
        kind: prose or Python.
        name: the base name of a file that is one document, else an empty string.
        ends: sentence ends as in `Document`, if the corpus gives them; None if the text is still to be split.
        given: fields by name, as JSON values, that scorers read (`scorers.registry.given_field`); None if no scorer
            reads any.
    """

    source: str
    position: int
    doc_id: str
    text: str
    meta: str
    kind: DocumentKind
    name: str
    ends: tuple[int, ...] | None = None
    given: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A reference to a record that was not labelled, or to the unreadable rest of a source.

    Attributes:
        source: URI of the input.
        position: as in `Record`; for the rest of a source, the index of the first lost record.
        reason: short and machine-readable; quarantined records are counted by it.
        detail: for people, without any text of the corpus.
        text: the content of the record, only if `quarantine_text` is set.
    """

    source: str
    position: int
    reason: str
    detail: str = ""
    text: str | None = None
