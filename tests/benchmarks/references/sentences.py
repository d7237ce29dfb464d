"""Sentences the plain way: a spaCy pipeline with its `sentencizer`, over batches of texts."""

from collections.abc import Sequence
from typing import Any

# spaCy's own limit: it refuses longer texts, so they cannot be compared.
LONGEST = 1_000_000


def pipeline() -> Any:
    """An English pipeline that only finds sentences."""
    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    return nlp


def ends(nlp: Any, texts: Sequence[str]) -> list[list[int]]:
    """For each text the exclusive ends of its sentences, in code points: where the next one starts."""
    found = []
    for text, document in zip(texts, nlp.pipe(texts), strict=True):
        starts = [sentence.start_char for sentence in document.sents]
        found.append([*starts[1:], len(text)] if starts else [])
    return found
