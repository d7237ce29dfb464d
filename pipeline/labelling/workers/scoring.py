"""Scores of documents whatever a scorer does: where it raises or returns no score, only that document is lost."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, Scorer, ScoringError
from scorers.deadline import DeadlineExceededError
from scorers.errors import UserError
from scorers.isolation import describe
from scorers.stopping import StopRequest

SCORER_ERROR = "scorer-error"
INVALID_SCORE = "invalid-score"

# Exceptions that mean to go through everything, whoever's code they meet.
_MEANT = (DeadlineExceededError, GeneratorExit, KeyboardInterrupt, StopRequest, SystemExit)

Scores = NDArray[np.float32]


class ScorerFailedError(UserError):
    """A scorer fails whatever it is given: nothing is known of any document."""


def score_documents(scorer: Scorer, documents: Sequence[Document]) -> list[Scores | ScoringError]:
    """Scores, float32 [n_sentences] a document, finite and >= 0, or why there are none.

    A scorer that raises is asked again with fewer documents until those are found that it cannot bear. Then all are
    scored together once more with placeholders for these: batches keep their shapes, and so the other documents'
    scores the bytes that they would have had. Where it cannot bear that either (documents that it only fails on
    together, a placeholder that is as bad as its document), the scores are those of the largest halves that it bore.

    One bad document of n costs at most 2 log2(n) + 5 calls, n bad ones 2 n + 1. What is no `Exception`, such as the
    `SystemExit` of a process that is told to end, passes.

    Raises:
        ScorerFailedError: it raises on a document with nothing in it too: it is at fault, and not the documents.
    """
    with contextlib.suppress(Exception):
        return _score(scorer, documents)
    try:
        return _score(scorer, documents)  # the fault may have passed
    except Exception as error:  # noqa: BLE001 - the documents that cause it are looked for
        _refuse_broken(scorer, documents[0])
        found = _halves(scorer, documents, error)
    failed = {index: each for index, each in enumerate(found) if isinstance(each, _RaisedError)}
    if 0 < len(failed) < len(documents):
        replaced = [placeholder(each) if index in failed else each for index, each in enumerate(documents)]
        with contextlib.suppress(Exception):
            found = [failed.get(index, each) for index, each in enumerate(_score(scorer, replaced))]
    return found


def placeholder(document: Document) -> Document:
    """Another text of the same kind and the same lengths of sentences, with nothing in it to choke on."""
    lines = document.kind == "python"
    return Document("".join(_blank(each, lines) for each in document.sentences()), document.ends, document.kind)


def _blank(sentence: str, is_line: bool) -> str:
    if not is_line:
        return "".join(" " if each == " " else "a" for each in sentence)
    content = sentence.rstrip("\r\n")
    return "#" * len(content) + sentence[len(content) :]


class _RaisedError(ScoringError):
    """The scorer raised, rather than to return why it has no score."""


def _halves(scorer: Scorer, documents: Sequence[Document], error: Exception) -> list[Scores | ScoringError]:
    """Results of the halves of `documents`, on which the scorer has just raised `error`, and of their halves."""
    if len(documents) == 1:
        known = error if isinstance(error, ScoringError) else ScoringError(SCORER_ERROR, describe(error))
        return [_RaisedError(known.reason, known.detail)]
    results: list[Scores | ScoringError] = []
    middle = len(documents) // 2
    for half in (documents[:middle], documents[middle:]):
        try:
            results += _score(scorer, half)
        except Exception as failure:  # noqa: BLE001 - it becomes the value of the one document that causes it
            results += _halves(scorer, half, failure)
    return results


def _refuse_broken(scorer: Scorer, like: Document) -> None:
    harmless = Document("a\n", np.array([2], np.int32), like.kind)
    try:
        _score(scorer, [harmless])
    except Exception as error:  # noqa: BLE001 - its message may quote what it was given
        raise ScorerFailedError(
            f"The scorer {scorer.name!r} fails on any document ({describe(error)}). "
            "Check that it can run here with `phf scorers`."
        ) from None


def _score(scorer: Scorer, documents: Sequence[Document]) -> list[Scores | ScoringError]:
    try:
        results: Any = scorer.score(documents)
    except BaseException as error:
        if isinstance(error, (Exception, *_MEANT)):
            raise
        # A panic of a library in Rust, whose message may quote a document, is of the document's making as well.
        raise ScoringError(SCORER_ERROR, describe(error)) from None
    if not isinstance(results, list) or len(results) != len(documents):
        what = f"{len(results)} results" if isinstance(results, list) else f"a {type(results).__name__}"
        raise ScoringError(INVALID_SCORE, f"{what} for {len(documents)} documents")
    return [_checked(result, len(each.ends)) for result, each in zip(results, documents, strict=True)]


def _checked(result: Any, sentences: int) -> Scores | ScoringError:
    if isinstance(result, ScoringError):
        return result
    if not isinstance(result, np.ndarray):
        return ScoringError(INVALID_SCORE, f"a {type(result).__name__}, not an array")
    if result.dtype != np.float32:
        return ScoringError(INVALID_SCORE, f"{result.dtype}, not float32")
    if result.shape != (sentences,):
        return ScoringError(INVALID_SCORE, f"shape {list(result.shape)} for {sentences} sentences")
    if not np.isfinite(result).all():
        return ScoringError(INVALID_SCORE, "NaN or infinite")
    if (result < 0).any():
        return ScoringError(INVALID_SCORE, "negative")
    scores: Scores = np.abs(result)  # a copy, and -0.0 becomes 0.0: equal scores must have equal bytes
    return scores
