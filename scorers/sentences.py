"""Split text losslessly: prose into sentences, code into physical lines, as ends in code points.

Prose is split at the boundaries of spaCy's rule-based `sentencizer` for English: a sentence ends after a token that is
a mark such as `.`, `!` or `?`, the punctuation behind it, and one space; more white space belongs to the next sentence.
It uses rules alone and no model, so spaCy's limit of 1,000,000 characters, which protects the memory of its networks,
does not apply here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, DocumentKind
from scorers.fingerprint import fingerprint as make_fingerprint
from scorers.fingerprint import library_versions
from scorers.light_spacy import import_spacy
from scorers.tokenizer import make_linear, shorten_runs

_REVISION = 3
_MOST_STRINGS = 500_000
_SHORT_RUN = 50  # longest run, in characters, whose tokens are cached

# Not `str.splitlines`, which also splits at form feeds and U+2028, where no line of code ends.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+\Z")


def split(text: str, kind: DocumentKind = "prose") -> NDArray[np.int32]:
    """Return the exclusive ends of the sentences, int32 [n_sentences], strictly increasing, the last `len(text)`.

    They partition the text, white space included; an empty text has no sentence.
    """
    ends = _lines(text) if kind == "python" else _prose(text)
    return np.asarray(ends, dtype=np.int32)


def document(text: str, kind: DocumentKind = "prose", name: str = "") -> Document:
    """Return a text as a document, split by `split`."""
    return Document(text, split(text, kind), kind, name)


def fingerprint() -> str:
    """Return the fingerprint of the splitter, which covers the version of spaCy and of our own rules."""
    return make_fingerprint("sentences", {}, revision=_REVISION, libraries=library_versions("spacy"))


def _lines(text: str) -> list[int]:
    return [match.end() for match in _LINE.finditer(text)]


def _prose(text: str) -> list[int]:
    return [*_sentence_starts(text), len(text)] if text else []


def _sentence_starts(text: str) -> Iterator[int]:
    """Yield where the sentences after the first start; memory does not grow with the text.

    A sentence starts at the first token after a mark that is neither a mark nor punctuation. spaCy tokenises each run
    of characters without white space on its own, and makes one token of the white space before it, less one space. So
    it is given only the runs that hold a mark and those that follow one: tokenising the whole text takes a hundred
    bytes per character, and ten times as long. Runs that an emoticon could span are tokenised together.
    """
    patterns = _patterns()
    end, marked = 0, False
    while run := (patterns.run if marked else patterns.run_with_mark).search(text, end):
        if marked and (space := _white_space_token(text, end, run.start())) is not None:
            yield space
            marked = False
        start, end = _linked(text, end, *run.span())
        for offset, is_mark in _tokens(text[start:end]):
            if marked and not is_mark:
                yield start + offset
            marked = is_mark
    if marked and (space := _white_space_token(text, end, len(text))) is not None:
        yield space


def _linked(text: str, floor: int, start: int, stop: int) -> tuple[int, int]:
    """Extend a run by the runs beside it, after `floor`, that may share a special token with it.

    spaCy matches special tokens such as `:)` in the sequence of tokens. It also matches `: )` and then drops it, but by
    then it has lost a `)-:` beside it.
    """
    links = _spacy().links
    while text[stop : stop + 1] == " " and text[stop - 1] + text[stop + 1 : stop + 2] in links:
        stop = _patterns().run.match(text, stop + 1).end()  # type: ignore[union-attr]
    while start - 2 >= floor and text[start - 1] == " " and text[start - 2] + text[start] in links:
        start -= 2
        while start > floor and not text[start - 1].isspace():
            start -= 1
    return start, stop


def _white_space_token(text: str, start: int, stop: int) -> int | None:
    """Return where spaCy has a token between two runs, in the white space `text[start:stop]`; None for no token."""
    token = start + (text[start:stop][:1] == " ")
    return token if token < stop else None


# The tokens of a run that matter, each as (offset, whether it is a mark).
_Tokens = tuple[tuple[int, bool], ...]


def _tokens(run: str) -> _Tokens:
    if run[0].isalnum() and not _patterns().mark.search(run):
        return ((0, False),)
    return _read_short(run) if len(run) <= _SHORT_RUN else _read(run)


def _read(run: str) -> _Tokens:
    short, removed = shorten_runs(run)
    spacy = _spacy()
    return tuple(
        (removed.original(token.idx), token.text in spacy.marks)
        for token in spacy.tokenizer(short)
        if token.text in spacy.marks or not token.is_punct
    )


_read_short = lru_cache(maxsize=50_000)(_read)


@dataclass(frozen=True)
class _Patterns:
    mark: re.Pattern[str]
    run: re.Pattern[str]
    run_with_mark: re.Pattern[str]


@cache
def _patterns() -> _Patterns:
    # All characters beyond U+FFFF count as possible marks: a class that lists the marks there is ten times slower.
    common = "".join(sorted(mark for mark in _spacy().marks if mark <= "\uffff"))
    mark = re.escape(common) + "\U00010000-\U0010ffff"
    return _Patterns(re.compile(f"[{mark}]"), re.compile(r"\S++"), re.compile(rf"(?<!\S)[^\s{mark}]*+[{mark}]\S*+"))


@dataclass(frozen=True)
class _Spacy:
    tokenizer: Any
    strings: Any
    marks: frozenset[str]
    # Pairs of characters between which the plain tokeniser splits a special token such as `:)`.
    links: frozenset[str]


def _spacy() -> _Spacy:
    loaded = _load_spacy()
    if len(loaded.strings) > _MOST_STRINGS:
        # spaCy keeps every string it has seen; its memory zones would free them, but take three times as long.
        _load_spacy.cache_clear()
        loaded = _load_spacy()
    return loaded


@cache
def _load_spacy() -> _Spacy:
    import_spacy()
    from spacy.lang.en import English

    nlp = English()
    make_linear(nlp.tokenizer)
    sentencizer: Any = nlp.create_pipe("sentencizer")
    return _Spacy(nlp.tokenizer, nlp.vocab.strings, frozenset(sentencizer.punct_chars), _links(nlp.tokenizer))


def _links(tokenizer: Any) -> frozenset[str]:
    from spacy.tokenizer import Tokenizer

    plain = Tokenizer(
        tokenizer.vocab,
        prefix_search=tokenizer.prefix_search,
        suffix_search=tokenizer.suffix_search,
        infix_finditer=tokenizer.infix_finditer,
        token_match=tokenizer.token_match,
        url_match=tokenizer.url_match,
    )
    return frozenset(
        special[token.idx - 1 : token.idx + 1]
        for special in tokenizer.rules
        if not any(map(str.isspace, special))
        for token in plain(special)
        if token.idx
    )
