"""Score documents with a classifier: encode their sentences, compute each distinct one once, and combine windows."""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from scorers.attempt import allowed_seconds
from scorers.classifiers.encoding import Encoder, Ids
from scorers.contract import Document, ScoringError
from scorers.describe_error import describe

Found = TypeVar("Found")

# Sentences encoded and sorted by length together; bounds the memory of a call.
_WINDOW = 16_384


class _LateError(Exception):
    """The documents have used up their joint time."""


def score_sentences(
    documents: Sequence[Document],
    encoder: Encoder,
    scores: Callable[[Sequence[Ids], Callable[[], None]], NDArray[np.float32]],
    deadline_s: float,
) -> list[NDArray[np.float32] | ScoringError]:
    """Score all documents together; return for each an array [n_sentences], or why it has none.

    A sentence that occurs more than once in the call is computed once; a sentence in windows gets the largest of their
    scores. The documents share their time: together they may take the sum of what `deadline_s` allows each. The time is
    checked before each batch; a document with a sentence that is not computed by then fails with `deadline`.

    Args:
        documents: the documents; results depend on nothing else.
        encoder: from sentences to sequences of token ids.
        scores: from sequences, and a function to call before each batch, to float32 [n_sequences].
        deadline_s: seconds per document, and as much again for every 50,000 characters of it.
    """

    def find(window: list[str], check: Callable[[], None]) -> list[float | ScoringError]:
        return _scores(window, encoder, lambda ids: scores(ids, check))

    return [_document(each) for each in each_sentence(documents, find, deadline_s)]


def each_sentence(
    documents: Sequence[Document],
    find: Callable[[list[str], Callable[[], None]], list[Found | ScoringError]],
    deadline_s: float,
) -> list[list[Found | ScoringError]]:
    """Return what `find` returns for each sentence of each document; see `score_sentences`.

    Args:
        documents: the documents.
        find: from distinct sentences, and a function to call before each batch, to a result for each.
        deadline_s: seconds per document.
    """
    sentences = [document.sentences() for document in documents]
    distinct = iter(dict.fromkeys(each for some in sentences for each in some))
    known: dict[str, Found | ScoringError] = {}
    allowed = sum(allowed_seconds(deadline_s, len(document.text)) for document in documents)
    end = time.monotonic() + allowed
    late = ScoringError("deadline", f"the documents of its call took longer than {allowed:g} s")

    def check() -> None:
        if time.monotonic() > end:
            raise _LateError

    while window := list(islice(distinct, _WINDOW)):
        try:
            check()
            known.update(zip(window, find(window, check), strict=True))
        except _LateError:
            known.update(dict.fromkeys([*window, *distinct], late))
    return [[known[each] for each in some] for some in sentences]


def _scores(
    sentences: list[str], encoder: Encoder, scores: Callable[[Sequence[Ids]], NDArray[np.float32]]
) -> list[float | ScoringError]:
    encoded = encoder(sentences)
    sequences = [ids for each in encoded if not isinstance(each, Exception) for ids in each]
    found = scores(sequences)
    results: list[float | ScoringError] = []
    done = 0
    for each in encoded:
        if isinstance(each, Exception):
            results.append(ScoringError("scorer-error", describe(each)))
            continue
        # If one window is NaN, so is the maximum.
        score = float(found[done : done + len(each)].max())
        done += len(each)
        results.append(_checked(score))
    return results


def _checked(score: float) -> float | ScoringError:
    if not np.isfinite(score):
        return ScoringError("not-finite", "the network's output is NaN or infinite")
    if score < 0:
        return ScoringError("negative", "the network's output is below 0, but scores are not: use activation=sigmoid")
    return score


def _document(scores: list[float | ScoringError]) -> NDArray[np.float32] | ScoringError:
    for each in scores:
        if isinstance(each, ScoringError):
            return each
    return np.asarray(scores, dtype=np.float32)
