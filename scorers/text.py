"""What scorers of natural language share: they apply to prose and code alike, unless an option says otherwise."""

from typing import Literal

from scorers.contract import Document, SemanticOptions


class TextOptions(SemanticOptions):
    """Base of the options of scorers that read natural language.

    Attributes:
        documents: which documents are scored; the column is null for the others.
    """

    documents: Literal["any", "prose", "python"] = "any"

    def apply_to(self, document: Document) -> bool:
        """Return whether the document is to be scored."""
        return self.documents in ("any", document.kind)


def utf8_size(text: str) -> int:
    """Return the size of `text` in UTF-8, in bytes."""
    return len(text) if text.isascii() else len(text.encode())
