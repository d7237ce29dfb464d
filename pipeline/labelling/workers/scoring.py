"""Call a scorer so that a failure loses only the document that causes it."""

import contextlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, Scorer, ScoringError
from scorers.deadline import DeadlineExceededError
from scorers.describe_error import describe
from scorers.errors import UserError
from scorers.languages import speaks
from scorers.registry import ScorerSpec
from scorers.spans import Located, why_invalid
from scorers.stopping import StopRequest

SCORER_ERROR = "scorer-error"
INVALID_SCORE = "invalid-score"
NO_LANGUAGE = "no-language"

# Exceptions that must not be caught on their way up.
_PASSED_ON = (DeadlineExceededError, GeneratorExit, KeyboardInterrupt, StopRequest, SystemExit)

Scores = NDArray[np.float32]
Result = Scores | Located | ScoringError


class Locating:
    """A scorer that also locates: its `score` gives scores and findings, from one pass."""

    def __init__(self, scorer: Scorer) -> None:
        self.name = scorer.name
        self.fingerprint = scorer.fingerprint
        self._scorer: Any = scorer

    def applies(self, document: Document) -> bool:
        """Return whether the scorer applies to the document."""
        applies: bool = self._scorer.applies(document)
        return applies

    def score(self, documents: Sequence[Document]) -> Any:
        """Return what `LocatesFindings.locate` returns."""
        return self._scorer.locate(documents)


class Speaking:
    """A scorer that does not apply to documents in languages that it does not speak."""

    def __init__(self, scorer: Scorer, languages: Collection[str], field: str) -> None:
        self.name = scorer.name
        self.fingerprint = scorer.fingerprint
        self._scorer: Any = scorer
        self._languages = frozenset(languages)
        self._field = field

    def applies(self, document: Document) -> bool:
        """Return whether the scorer speaks the document's language, and applies to it.

        Raises:
            ScoringError: the record does not say in which language it is.
        """
        tag = (document.given or {}).get(self._field)
        if tag is None or tag == "":
            raise ScoringError(NO_LANGUAGE, f"the field {self._field!r} is empty or missing")
        try:
            spoken = speaks(self._languages, tag) if isinstance(tag, str) else None
        except ValueError:
            spoken = None
        if spoken is None:
            raise ScoringError(NO_LANGUAGE, f"the field {self._field!r} holds no language tag, such as en or pt-BR")
        return spoken and bool(self._scorer.applies(document))

    def score(self, documents: Sequence[Document]) -> list[Scores | ScoringError]:
        """Return the scorer's scores."""
        scores: list[Scores | ScoringError] = self._scorer.score(documents)
        return scores

    def locate(self, documents: Sequence[Document]) -> Any:
        """Return what `LocatesFindings.locate` returns."""
        return self._scorer.locate(documents)


def prepared(scorer: Scorer, spec: ScorerSpec, *, locating: bool) -> Scorer:
    """Wrap a scorer as its specification asks: for the languages that it speaks, and with its findings."""
    if spec.languages:
        scorer = Speaking(scorer, spec.languages, spec.language_field)
    return Locating(scorer) if locating else scorer


class ScorerFailedError(UserError):
    """A scorer fails on any document, so that the scorer is at fault."""


def score_documents(scorer: Scorer, documents: Sequence[Document]) -> list[Result]:
    """Return for each document its scores, float32 [n_sentences], finite and >= 0, or the error.

    The scores of a `Locating` scorer come with its findings.

    If the scorer raises, bisect the documents to find those that cause it. Then score all together once more with
    placeholders for these, so that batches keep their shapes and the other documents get the same bytes as ever. If
    that fails too (documents that fail only together, or a placeholder that fails like its document), keep the scores
    of the largest halves that succeeded.

    One bad document of n costs at most 2 log2(n) + 5 calls, n bad ones 2 n + 1. Exceptions that are no `Exception`,
    such as the `SystemExit` of a process that is asked to stop, are not caught.

    Raises:
        ScorerFailedError: the scorer raises on a harmless document too.
    """
    with contextlib.suppress(Exception):
        return _score(scorer, documents)
    try:
        return _score(scorer, documents)  # the failure may have been transient
    except Exception as error:  # noqa: BLE001 - bisected below
        _check_scorer_works(scorer, documents[0])
        found = _halves(scorer, documents, error)
    failed = {index: each for index, each in enumerate(found) if isinstance(each, _RaisedError)}
    if 0 < len(failed) < len(documents):
        replaced = [placeholder(each) if index in failed else each for index, each in enumerate(documents)]
        with contextlib.suppress(Exception):
            found = [failed.get(index, each) for index, each in enumerate(_score(scorer, replaced))]
    return found


def placeholder(document: Document) -> Document:
    """A harmless document of the same kind, with sentences of the same lengths."""
    lines = document.kind == "python"
    return Document("".join(_blank(each, lines) for each in document.sentences()), document.ends, document.kind)


def _blank(sentence: str, is_line: bool) -> str:
    if not is_line:
        return "".join(" " if each == " " else "a" for each in sentence)
    content = sentence.rstrip("\r\n")
    return "#" * len(content) + sentence[len(content) :]


class _RaisedError(ScoringError):
    """The scorer raised, rather than returning a `ScoringError`."""


def _halves(scorer: Scorer, documents: Sequence[Document], error: Exception) -> list[Result]:
    """Bisect `documents`, on which the scorer has just raised `error`."""
    if len(documents) == 1:
        known = error if isinstance(error, ScoringError) else ScoringError(SCORER_ERROR, describe(error))
        return [_RaisedError(known.reason, known.detail)]
    results: list[Result] = []
    middle = len(documents) // 2
    for half in (documents[:middle], documents[middle:]):
        try:
            results += _score(scorer, half)
        except Exception as failure:  # noqa: BLE001 - becomes the result of the document that causes it
            results += _halves(scorer, half, failure)
    return results


def _check_scorer_works(scorer: Scorer, like: Document) -> None:
    harmless = Document("a\n", np.array([2], np.int32), like.kind)
    try:
        _score(scorer, [harmless])
    except Exception as error:  # noqa: BLE001 - its message may quote the document
        raise ScorerFailedError(
            f"The scorer {scorer.name!r} fails on any document ({describe(error)}). "
            "Check that it can run here with `phf scorers`."
        ) from None


def _score(scorer: Scorer, documents: Sequence[Document]) -> list[Result]:
    try:
        results: Any = scorer.score(documents)
    except BaseException as error:
        if isinstance(error, (Exception, *_PASSED_ON)):
            raise
        # A panic in a Rust library is caused by the document too; its message may quote it.
        raise ScoringError(SCORER_ERROR, describe(error)) from None
    if not isinstance(results, list) or len(results) != len(documents):
        what = f"{len(results)} results" if isinstance(results, list) else f"a {type(results).__name__}"
        raise ScoringError(INVALID_SCORE, f"{what} for {len(documents)} documents")
    locates = isinstance(scorer, Locating)
    return [
        _checked_findings(result, each) if locates else _checked(result, len(each.ends))
        for result, each in zip(results, documents, strict=True)
    ]


def _checked_findings(result: Any, document: Document) -> Result:
    if isinstance(result, ScoringError):
        return result
    if not isinstance(result, Located):
        return ScoringError(INVALID_SCORE, f"a {type(result).__name__}, not located scores")
    scores = _checked(result.scores, len(document.ends))
    if isinstance(scores, ScoringError):
        return scores
    problem = why_invalid(result.findings, document.ends.tolist(), scores)
    return Located(scores, result.findings) if problem is None else ScoringError(INVALID_SCORE, problem)


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
    scores: Scores = np.abs(result)  # a copy in which -0.0 becomes 0.0, since equal scores must have equal bytes
    return scores
