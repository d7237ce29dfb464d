"""Contract checks that every scorer must pass, for the tests of packages that add one.

    from scorers.testing import check
    from scorers.registry import ScorerSpec, build

    def test_my_scorer_obeys_the_contract():
        check(build("mine", ScorerSpec(kind="mine")))

They need no test framework: a failed check raises an `AssertionError` that names the document.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, DocumentKind, Scorer, ScoringError
from scorers.describe_error import describe
from scorers.sentences import document

Result = NDArray[np.float32] | ScoringError

_PROSE = (
    "You are kind. Write to Jane Doe at jane.doe@example.com, or call +1 201-555-0123! Is she at Microsoft?",
    "What a fucking idiot you are.",
    "",
    "   \n\n ",
    "He was born on 10-Nov-1988, I think. It rained all day",
    "\x00 nul and 混合 ends。 ok…  Bye?! (yes)",
)
_CODE = (
    '"""A module."""\n\nimport os\n\n\ndef path(name):\n    """Join."""\n    return os.path.join( "a",name)\n',
    "x=1\r\ny = 2 \r\n",
    "",
    "def broken(:\n    pass\n",
    "import logging\nclass A(logging.Handler):\n\tdef emit(self, record): print(record)\n",
)


def check(
    scorer: Scorer,
    documents: Sequence[Document] | None = None,
    *,
    tolerance: float = 0.0,
    hostile_size: int = 100_000,
    seconds: float = 60.0,
) -> None:
    """Run all checks of this module.

    Args:
        scorer: a scorer, built with its usual deadline.
        documents: ordinary documents that it can score; None for a few of the kind that it applies to.
        tolerance: largest difference between two scores of the same sentence. A network's may differ by 1e-6, because
            matrix products of other shapes round differently; all others should be equal.
        hostile_size: characters in each hostile document.
        seconds: time that the scorer may take for each of them.

    Raises:
        AssertionError: the scorer breaks the contract.
    """
    ordinary = ordinary_documents(scorer) if documents is None else list(documents)
    check_scores(scorer, ordinary)
    check_order(scorer, ordinary, tolerance)
    kind: DocumentKind = ordinary[0].kind if ordinary else "prose"
    strange = hostile_documents(kind, hostile_size)
    for name, each in strange.items():
        check_survives(scorer, each, name, seconds)
    check_forgets(scorer, ordinary, list(strange.values()), tolerance)


def ordinary_documents(scorer: Scorer) -> list[Document]:
    """Return a few documents that the scorer applies to: prose, or else Python."""
    prose = [document(text) for text in _PROSE]
    return prose if scorer.applies(prose[0]) else [document(text, "python") for text in _CODE]


def hostile_documents(
    kind: DocumentKind = "prose", size: int = 100_000, only: Collection[str] | None = None
) -> dict[str, Document]:
    """Return hostile documents of about `size` characters, keyed by what is strange in them; `only` selects keys."""
    texts = {
        "one line": ("What is in it? Nothing at all, " * size)[:size],
        "one word": "x" * size,
        "only NULs": "\0" * size,
        "only emoji": "👩\u200d👩\u200d👧🇩🇪" * (size // 7),
        "combining marks": "e" + "\u0301\u0327" * (size // 2),
        "right to left": "\u202eשלום עולם! مرحبا؟ \u202c" * (size // 22),
        "only CRLF": "\r\n" * (size // 2),
        "only newlines": "\n" * size,
        "deep brackets": "(" * (size // 2) + ")" * (size // 2),
        "only white space": " \t\u00a0\u2028" * (size // 4),
        "digits": "1234567890 " * (size // 11),
    }
    return {name: document(text, kind) for name, text in texts.items() if only is None or name in only}


def check_scores(scorer: Scorer, documents: Sequence[Document]) -> list[NDArray[np.float32]]:
    """Check that ordinary documents all have scores, one per sentence, float32, finite and >= 0; return them.

    Raises:
        AssertionError: a result is anything else.
    """
    results = _score(scorer, documents)
    scores: list[NDArray[np.float32]] = []
    for index, (each, result) in enumerate(zip(documents, results, strict=True)):
        _require_scores(result, each, f"document {index}")
        if isinstance(result, ScoringError):
            raise AssertionError(f"document {index} has no score: {result.reason}")
        scores.append(result)
    if scorer.score([]) != []:
        raise AssertionError("score([]) must return []")
    return scores


def check_order(scorer: Scorer, documents: Sequence[Document], tolerance: float = 0.0) -> None:
    """Check that a document's scores depend neither on the order of the documents nor on the others in the batch.

    Raises:
        AssertionError: two scores of one sentence are further apart than `tolerance`.
    """
    together = _score(scorer, documents)
    backwards = _score(scorer, documents[::-1])[::-1]
    twice = _score(scorer, [each for document in documents for each in (document, document)])
    for index, each in enumerate(documents):
        _require_equal(together[index], backwards[index], tolerance, f"document {index}, in another order")
        _require_equal(together[index], _score(scorer, [each])[0], tolerance, f"document {index}, on its own")
        for copy in twice[2 * index : 2 * index + 2]:
            _require_equal(together[index], copy, tolerance, f"document {index}, given twice")


def check_survives(scorer: Scorer, each: Document, name: str = "the document", seconds: float = 60.0) -> Result:
    """Check that a hostile document gives scores or a `ScoringError` in time, and raises nothing.

    Raises:
        AssertionError: it does not.
    """
    began = time.monotonic()
    (result,) = _score(scorer, [each], name)
    took = time.monotonic() - began
    _require_scores(result, each, name)
    if took > seconds:
        raise AssertionError(f"{name}: took {took:.1f} s, more than {seconds:g} s")
    return result


def check_forgets(
    scorer: Scorer, documents: Sequence[Document], strange: Sequence[Document], tolerance: float = 0.0
) -> None:
    """Check that ordinary documents have the same scores beside hostile ones, and after them.

    Raises:
        AssertionError: two scores of one sentence are further apart than `tolerance`.
    """
    alone = _score(scorer, documents)
    count = len(strange)
    beside = _score(scorer, [*strange, *documents])[count:]
    after = _score(scorer, documents)
    for index in range(len(documents)):
        _require_equal(alone[index], beside[index], tolerance, f"document {index}, beside strange ones")
        _require_equal(alone[index], after[index], tolerance, f"document {index}, after strange ones")


def with_field(each: Document, field: str) -> Document:
    """Return the document with one number per sentence in a field of its record, for scorers that need one."""
    return replace(each, given={field: [len(sentence) / 7 for sentence in each.sentences()]})


def _score(scorer: Scorer, documents: Sequence[Document], name: str = "some documents") -> list[Result]:
    try:
        results = scorer.score(documents)
    except Exception as error:
        raise AssertionError(
            f"{name}: score() must return a ScoringError for a document that it cannot score, not raise: "
            f"{describe(error)}"
        ) from error
    if not isinstance(results, list) or len(results) != len(documents):
        raise AssertionError(f"{name}: score() must return a list with one result for each document")
    return results


def _require_scores(result: Result, each: Document, name: str) -> None:
    if isinstance(result, ScoringError):
        return
    if not isinstance(result, np.ndarray) or result.dtype != np.float32 or result.shape != (len(each.ends),):
        raise AssertionError(f"{name}: the scores must be a float32 array of shape [{len(each.ends)}], one a sentence")
    if not (np.isfinite(result) & (result >= 0)).all():
        raise AssertionError(f"{name}: scores must be finite and >= 0")


def _require_equal(one: Result, other: Result, tolerance: float, name: str) -> None:
    if isinstance(one, ScoringError) or isinstance(other, ScoringError):
        reasons = [each.reason if isinstance(each, ScoringError) else None for each in (one, other)]
        if reasons[0] != reasons[1]:
            raise AssertionError(f"{name}: scored once but not every time (reasons: {', '.join(map(str, reasons))})")
        return
    apart = float(np.abs(one - other).max(initial=0.0))
    if apart > tolerance:
        raise AssertionError(f"{name}: scores differ by {apart:.3g}, more than {tolerance:g}")
