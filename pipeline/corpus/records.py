"""What reading yields: a record that can be labelled, or the reason why it can't be."""

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
        text: exactly the raw text; it can be encoded as UTF-8.
        meta: the other fields as a JSON object.
        kind: what the text is.
        name: the base name of a file that is one document, else an empty string.
        ends: of its sentences, as in `Document`, where the corpus gives them; None where they are still to be found.
        given: other fields by name, as JSON values, that a scorer asks for (`scorers.registry.given_field`); None where
            none does.
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
    """A reference to a record that was not labelled, or to the rest of a source that could not be read.

    Attributes:
        source: URI of the input.
        position: as in `Record`; for the rest of a source, the index of the first record that was lost.
        reason: short and machine-readable; quarantine counts by it.
        detail: for people, without any text of the corpus.
        text: what there was of the record, only where the job asks for it (`quarantine_text`).
    """

    source: str
    position: int
    reason: str
    detail: str = ""
    text: str | None = None
