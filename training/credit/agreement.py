"""Compare learnt tokens with those that the scorer itself points at, in held-out sentences."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from scorers.contract import Document, DocumentKind, Scorer, ScoringError
from scorers.errors import UserError
from scorers.spans import LocatesFindings, overlapping
from training.data.stored_credit import Agreement
from training.data.texts import read_texts
from training.data.tokenizers import Tokenizer

_WORD = re.compile(r"\S+")
# A word without which the score falls to this share of it, or below, is guilty.
_FALL = 0.5

_Span = tuple[int, int]


@dataclass(frozen=True)
class Sentence:
    """A sentence of a store and its text.

    Attributes:
        index: in the store.
        text: of the sentence.
        first: whether it is the first of its document.
    """

    index: int
    text: str
    first: bool


def chosen_sentences(dataset: LabelledDataset, wanted: NDArray[np.int64]) -> Iterator[Sentence]:
    """Yield the sentences of a dataset with these indices [n] into its token store, ascending."""
    begin = 0
    left = np.sort(wanted)
    for texts in read_texts(dataset):
        counts = texts.sentence_counts
        ends = begin + np.cumsum(counts)
        here = left[left < (ends[-1] if len(ends) else begin)]
        left = left[len(here) :]
        for index in here.tolist():
            row = int(np.searchsorted(ends, index, side="right"))
            number = index - int(ends[row] - counts[row])
            own: list[int] = texts.batch["ends"][row].as_py()
            text: str = texts.batch["text"][row].as_py()
            yield Sentence(index, text[own[number - 1] if number else 0 : own[number]], number == 0)
        begin = int(ends[-1]) if len(ends) else begin
        if not len(left):
            return


def measure_agreement(
    sentences: list[Sentence],
    scores: NDArray[np.float32],
    credited: Callable[[Sentence], NDArray[np.bool_]],
    scorer: Scorer,
    tokenizer: Tokenizer,
    kind: DocumentKind,
    progress: Callable[[int, int], None],
) -> Agreement:
    """Count the tokens that are credited, guilty, and both.

    Args:
        sentences: with scores above 0.
        scores: theirs, [sentences].
        credited: returns which of a sentence's tokens have a score above 0, bool [tokens].
        scorer: of the column.
        tokenizer: of the store.
        kind: of the documents.
        progress: called with the sentences done and all of them.

    Raises:
        UserError: the tokenizer does not give as many tokens as `credited`.
    """
    counts = {"sentences": 0, "unlocated": 0, "tokens": 0, "guilty": 0, "credited": 0, "both": 0}
    by_spans = isinstance(scorer, LocatesFindings)
    for number, (sentence, score) in enumerate(zip(sentences, scores.tolist(), strict=True)):
        spans = _found(scorer, sentence, kind) if by_spans else _decisive_words(scorer, sentence, score, kind)
        progress(number + 1, len(sentences))
        if not spans:
            counts["unlocated"] += 1
            continue
        places = tokenizer.spans([sentence.text], np.array([sentence.first]))[0]
        marked = credited(sentence)
        if len(places) != len(marked):
            raise UserError("The token store was made with another tokenizer. Delete its folder.")
        guilty = overlapping(places, spans)
        counts["sentences"] += 1
        counts["tokens"] += len(places)
        counts["guilty"] += int(guilty.sum())
        counts["credited"] += int(marked.sum())
        counts["both"] += int((guilty & marked).sum())
    return Agreement(reference="spans" if by_spans else "deletion", **counts)


def _found(scorer: Any, sentence: Sentence, kind: DocumentKind) -> list[_Span]:
    found = scorer.locate([_whole(sentence.text, kind)])[0]
    return [] if isinstance(found, ScoringError) else [(each.start, each.end) for each in found.findings]


def _decisive_words(scorer: Scorer, sentence: Sentence, score: float, kind: DocumentKind) -> list[_Span]:
    """The words whose deletion takes at least half of the score away, each by itself."""
    words = [match.span() for match in _WORD.finditer(sentence.text)]
    shorter = [sentence.text[:start] + sentence.text[end:] for start, end in words]
    asked = [(word, _whole(text, kind)) for word, text in zip(words, shorter, strict=True) if text]
    asked = [(word, document) for word, document in asked if scorer.applies(document)]
    found = scorer.score([document for _, document in asked])
    return [
        word
        for (word, _), result in zip(asked, found, strict=True)
        if not isinstance(result, ScoringError) and float(result[0]) <= _FALL * score
    ]


def _whole(text: str, kind: DocumentKind) -> Document:
    return Document(text, np.array([len(text)], dtype=np.int32), kind)
