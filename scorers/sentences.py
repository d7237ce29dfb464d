"""Lossless splitting: the sentences of prose and the physical lines of code, as ends in code points.

Prose is split at the boundaries of spaCy's rule-based `sentencizer` for English: a sentence ends after a token that is
a mark such as `.`, `!` or `?`, the punctuation behind it, and one space; more white space belongs to the next sentence.
It is rules alone and needs no model, so spaCy's limit of 1,000,000 characters, which is there for the memory of its
networks, does not hold here.
"""

import re
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, DocumentKind
from scorers.fingerprint import fingerprint as make_fingerprint
from scorers.fingerprint import library_versions
from scorers.tokenizer import make_linear, shorten_runs

_REVISION = 1
_MOST_STRINGS = 500_000

# Not `str.splitlines`, which also splits at form feeds, separators and U+2028, where no line of code ends.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+\Z")


def split(text: str, kind: DocumentKind = "prose") -> NDArray[np.int32]:
    """Exclusive ends of the sentences of `text`, int32 [n_sentences], strictly increasing, the last one `len(text)`.

    They partition the text, white space included; an empty text has no sentence.
    """
    ends = _lines(text) if kind == "python" else _prose(text)
    return np.asarray(ends, dtype=np.int32)


def document(text: str, kind: DocumentKind = "prose", name: str = "") -> Document:
    """A text as a document, split by `split`."""
    return Document(text, split(text, kind), kind, name)


def fingerprint() -> str:
    """Changes whenever a boundary could: the version of spaCy and of the rules here."""
    return make_fingerprint("sentences", {}, revision=_REVISION, libraries=library_versions("spacy"))


def _lines(text: str) -> list[int]:
    return [match.end() for match in _LINE.finditer(text)]


def _prose(text: str) -> list[int]:
    if not text:
        return []
    short, removed = shorten_runs(text)
    starts = [sentence.start_char for sentence in _sentencizer()(short).sents]
    return [*(removed.original(start) for start in starts[1:]), len(text)]


def _sentencizer() -> Any:
    nlp = _new_sentencizer()
    if len(nlp.vocab.strings) > _MOST_STRINGS:
        # spaCy remembers every string it has met; its memory zones give them back, at three times the time.
        _new_sentencizer.cache_clear()
        nlp = _new_sentencizer()
    return nlp


@cache
def _new_sentencizer() -> Any:
    from spacy.lang.en import English

    nlp = English()
    nlp.add_pipe("sentencizer")
    nlp.max_length = 2**62
    make_linear(nlp.tokenizer)
    return nlp
