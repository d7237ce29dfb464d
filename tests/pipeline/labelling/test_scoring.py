"""Whatever a scorer does, only the documents on which it fails are lost, and the others' scores stay the same."""

from collections.abc import Callable, Sequence
from math import ceil, log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.labelling.workers.scoring import ScorerFailedError, placeholder, score_documents
from scorers.contract import Document, DocumentKind, ScoringError
from scorers.sentences import document
from tests.pipeline.toy_scorers import ListlessScorer, ToyScorer, TroubleScorer


def poisoned(documents: Sequence[Document]) -> bool:
    return any("POISON" in each.text for each in documents)


def scores_of(texts: list[str], scorer: ToyScorer) -> list[Any]:
    results = score_documents(scorer, [document(text) for text in texts])
    return [each.reason if isinstance(each, ScoringError) else each.tolist() for each in results]


@settings(max_examples=100)
@given(poisoned=st.lists(st.booleans(), min_size=1, max_size=40))
def test_poisoned_documents_change_nothing_for_the_others(poisoned: list[bool]) -> None:
    texts = [f"{'POISON' if bad else 'nothing'}! {'x' * index}." for index, bad in enumerate(poisoned)]
    scorer = ToyScorer("toy")
    scores = scores_of(texts, scorer)
    harmless = scores_of([text.replace("POISON", "PO1SON") for text in texts], ToyScorer("toy"))
    assert scores == ["scorer-error" if bad else each for bad, each in zip(poisoned, harmless, strict=True)]
    if sum(poisoned) == 1:
        assert sum(scorer.calls) <= 5 * len(texts) + 1


def test_a_scorer_that_fails_on_any_document_loses_no_record() -> None:
    scorer = ToyScorer("toy")
    scorer.broken = True
    with pytest.raises(ScorerFailedError, match=r"'toy' fails on any document.*ValueError") as caught:
        score_documents(scorer, [document("SECRET one."), document("SECRET two.")])
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_transient_failure_loses_no_record() -> None:
    scorer = ToyScorer("toy")
    real = scorer.score

    def fail_once(documents: Any) -> Any:
        if not scorer.calls:
            scorer.calls.append(0)
            raise MemoryError
        return real(documents)

    scorer.score = fail_once  # type: ignore[method-assign]
    assert scores_of(["One.", "Two."], scorer) == [[0.5], [0.5]]


@pytest.mark.parametrize(
    "invalid",
    [
        np.float32([np.nan, 0.1]),
        np.float32([np.inf, 0.1]),
        np.float32([-0.1, 0.1]),
        np.float32([0.1]),
        np.float32([0.1, 0.1, 0.1]),
        np.float32([[0.1, 0.1]]),
        np.float64([0.1, 0.1]),
        np.array([1, 1]),
        [0.1, 0.1],
        0.1,
        None,
    ],
    ids=repr,
)
def test_an_invalid_score_is_an_error_and_not_in_the_dataset(invalid: Any) -> None:
    scorer = ToyScorer("toy")
    scorer.invalid = invalid
    assert scores_of(["Good.", "INVALID! Yes."], scorer)[1] == "invalid-score"
    assert scores_of(["Good.", "INVALID! Yes."], scorer)[0] == scores_of(["Good.", "GREATEST Yes."], scorer)[0]


def test_a_missing_result_is_traced_to_its_document() -> None:
    assert scores_of(["Good.", "INVALID! Yes.", "Fine."], ListlessScorer("toy")) == [
        scores_of(["Good.", "1NVALID! Yes.", "Fine."], ToyScorer("toy"))[0],
        "invalid-score",
        scores_of(["Good.", "1NVALID! Yes.", "Fine."], ToyScorer("toy"))[2],
    ]


def test_negative_zero_becomes_zero() -> None:
    scorer = ToyScorer("toy")
    scorer.invalid = np.float32([-0.0, 0.0])
    (scores,) = score_documents(scorer, [document("INVALID! Yes.")])
    assert isinstance(scores, np.ndarray)
    assert scores.tobytes() == bytes(8)


@settings(max_examples=100)
@given(text=st.text(), kind=st.sampled_from(["prose", "python"]))
def test_placeholders_have_the_shape_of_their_document(text: str, kind: DocumentKind) -> None:
    original = document(text, kind)
    other = placeholder(original)
    assert list(map(len, other.sentences())) == list(map(len, original.sentences()))
    assert other.kind == kind
    assert set(other.text) <= set("a #\r\n")
    if kind == "python":
        compile(other.text, "placeholder", "exec")


@pytest.mark.parametrize("position", [0, 4_321, 9_999])
def test_one_bad_document_of_ten_thousand_is_found_in_some_thirty_calls(position: int) -> None:
    texts = ["Good." if index != position else "POISON." for index in range(10_000)]
    scorer = TroubleScorer(poisoned)
    found = scores_of(texts, scorer)
    assert found[position] == "scorer-error"
    assert found.count("scorer-error") == 1
    assert len(scorer.calls) <= 2 * ceil(log2(len(texts))) + 5


def test_if_all_documents_are_bad_all_are_quarantined() -> None:
    scorer = TroubleScorer(poisoned)
    assert scores_of(["POISON."] * 100, scorer) == ["scorer-error"] * 100
    assert len(scorer.calls) <= 2 * 100 + 1


def test_a_broken_scorer_is_recognized_by_three_calls() -> None:
    scorer = TroubleScorer(lambda documents: True)
    with pytest.raises(ScorerFailedError):
        score_documents(scorer, [document("Good.")] * 1000)
    assert len(scorer.calls) == 3


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("POISON"), AssertionError("POISON")], ids=repr)
def test_serious_python_errors_become_values_too(error: Exception) -> None:
    results = score_documents(TroubleScorer(poisoned, error), [document("Good."), document("POISON.")])
    assert isinstance(results[0], np.ndarray)
    assert isinstance(results[1], ScoringError)
    assert results[1].detail.startswith(type(error).__name__)
    assert "POISON" not in str(results[1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_request_to_stop_is_not_blamed_on_a_document(error: type[BaseException]) -> None:
    scorer = TroubleScorer(poisoned, error())
    with pytest.raises(error):
        score_documents(scorer, [document("Good."), document("POISON.")])
    assert len(scorer.calls) == 1


def test_documents_that_fail_only_together_are_all_scored() -> None:
    def both(documents: Sequence[Document]) -> bool:
        return {"LEFT.", "RIGHT."} <= {each.text for each in documents}

    texts = ["Good.", "LEFT.", "Fine.", "Nice.", "RIGHT.", "Well."]
    found = scores_of(texts, TroubleScorer(both))
    assert all(isinstance(each, list) for each in found)
    assert found == scores_of(texts, TroubleScorer(both))


def test_only_a_document_whose_placeholder_fails_too_is_lost() -> None:
    def too_long(documents: Sequence[Document]) -> bool:
        return any(len(each.text) > 50 for each in documents)

    texts = ["Good.", "Fine.", "x" * 51, "Well."]
    found = scores_of(texts, TroubleScorer(too_long))
    assert found[2] == "scorer-error"
    assert all(isinstance(found[index], list) for index in (0, 1, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda documents, scores: scores[:-1],
        lambda documents, scores: [*scores, scores[0]],
        lambda documents, scores: tuple(scores),
        lambda documents, scores: None,
    ],
    ids=["too few", "too many", "a tuple", "nothing"],
)
def test_malformed_results_lose_only_their_document(wrong: Callable[..., Any]) -> None:
    scorer = ToyScorer("toy")
    real = scorer.score

    def score(documents: Sequence[Document]) -> Any:
        return wrong(documents, real(documents)) if _any_bad(documents) else real(documents)

    scorer.score = score  # type: ignore[method-assign]
    found = scores_of(["Good.", "BAD.", "Well."], scorer)
    assert found[1] == "invalid-score"
    assert [found[0], found[2]] == [scores_of(["Good.", "B4D.", "Well."], ToyScorer("toy"))[index] for index in (0, 2)]


def _any_bad(documents: Sequence[Document]) -> bool:
    return any("BAD" in each.text for each in documents)


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(["good", "bad", "left", "right", "refused"]), min_size=1, max_size=25),
)
def test_every_document_has_a_result_and_no_good_one_is_lost(kinds: list[str]) -> None:
    def unbearable(documents: Sequence[Document]) -> bool:
        texts = " ".join(each.text for each in documents)
        return "bad" in texts or ("left" in texts and "right" in texts)

    texts = [f"REFUSE {index}." if kind == "refused" else f"{kind} {index}." for index, kind in enumerate(kinds)]
    found = scores_of(texts, TroubleScorer(unbearable))
    expected = {"bad": "scorer-error", "refused": "deadline"}
    assert [each if isinstance(each, str) else "scored" for each in found] == [
        expected.get(kind, "scored") for kind in kinds
    ]
