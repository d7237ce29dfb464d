"""What the scorers of natural language share: they apply to any document, prose or code, unless told otherwise."""

from typing import Literal

from scorers.contract import Document, SemanticOptions


class TextOptions(SemanticOptions):
    """Base of the options of scorers that read natural language.

    Attributes:
        documents: which documents are scored; the column of the others is null.
    """

    documents: Literal["any", "prose", "python"] = "any"

    def apply_to(self, document: Document) -> bool:
        """Whether a document of this kind is scored."""
        return self.documents in ("any", document.kind)


def utf8_size(text: str) -> int:
    """Bytes of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
