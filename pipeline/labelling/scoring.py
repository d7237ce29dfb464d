"""Scores of documents whatever a scorer does: where it raises or returns no score, only that document is lost."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.labelling.stopping import StopRequest
from scorers.contract import Document, Scorer, ScoringError
from scorers.deadline import DeadlineExceededError
from scorers.errors import UserError
from scorers.isolation import describe

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
    scores the bytes that they would have had.

    Raises:
        ScorerFailedError: it also raises when every document it could not bear is replaced.
    """
    try:
        return _score(scorer, documents)
    except Exception:  # noqa: BLE001 - the documents that cause it are looked for
        failed = _find_failing(scorer, documents, range(len(documents)))
    replaced = [placeholder(each) if index in failed else each for index, each in enumerate(documents)]
    try:
        scores = _score(scorer, replaced)
    except Exception as error:  # noqa: BLE001 - its message may quote a document
        raise ScorerFailedError(
            f"The scorer {scorer.name!r} fails on any document ({describe(error)}). "
            "Check that it can run here with `phf scorers`."
        ) from None
    return [failed.get(index, each) for index, each in enumerate(scores)]


def placeholder(document: Document) -> Document:
    """Another text of the same kind and the same lengths of sentences, with nothing in it to choke on."""
    lines = document.kind == "python"
    return Document("".join(_blank(each, lines) for each in document.sentences()), document.ends, document.kind)


def _blank(sentence: str, is_line: bool) -> str:
    if not is_line:
        return "".join(" " if each == " " else "a" for each in sentence)
    content = sentence.rstrip("\r\n")
    return "#" * len(content) + sentence[len(content) :]


def _find_failing(scorer: Scorer, documents: Sequence[Document], indices: range) -> dict[int, ScoringError]:
    try:
        _score(scorer, [documents[index] for index in indices])
    except Exception as error:  # noqa: BLE001 - it becomes the value of the one document that causes it
        if len(indices) == 1:
            value = error if isinstance(error, ScoringError) else ScoringError(SCORER_ERROR, describe(error))
            return {indices[0]: value}
        middle = len(indices) // 2
        return _find_failing(scorer, documents, indices[:middle]) | _find_failing(scorer, documents, indices[middle:])
    return {}


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
