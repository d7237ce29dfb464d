"""The contract of all scorers: the checks of `scorers.testing`, and what only our own scorers promise."""

import pickle
import sys
import time

import numpy as np
import pytest

from scorers.contract import Execution, Scorer, ScoringError
from scorers.errors import UserError
from scorers.registry import KINDS, ScorerSpec, build, documents_of, given_field, runs_on_gpu
from scorers.sentences import document
from scorers.testing import (
    check,
    check_forgets,
    check_order,
    check_scores,
    check_survives,
    hostile_documents,
    ordinary_documents,
    with_field,
)
from tests.scorers.helpers import CODE, PROSE

# Seconds that a hostile document may take in a scorer with a deadline of a twentieth of a second. A deadline does not
# interrupt a call into C (a tokenizer, a matrix product), and other tests run in parallel.
BOUND_S = 20.0


def _options(kind, request):
    """Options with small weights for the kinds that need weights."""
    if kind == "detoxify":
        checkpoint, folder = request.getfixturevalue("tiny_bert")
        return {"model": str(checkpoint), "config": str(folder)}
    if kind == "classifier":
        return {"model": str(request.getfixturevalue("classifier_folder")), "label": "toxic"}
    if kind == "token-classifier":
        return {"model": str(request.getfixturevalue("token_classifier_folder"))}
    return {}


@pytest.fixture(scope="module")
def scorer_of(built):
    """A function from a kind to its scorer, if that can run here with its defaults."""

    def of(kind):
        try:
            return built(kind)
        except UserError as error:
            pytest.skip(str(error))

    return of


@pytest.fixture(autouse=True)
def _lost_deadlines(monkeypatch):
    """A deadline that comes in a destructor is lost, and the next one comes at once.

    Pytest's own hook for such errors would be hit by that one, and fail the test for it.
    """
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)


@pytest.fixture(scope="module")
def hurried(request):
    """A function from a kind to its scorer, with a deadline that large documents exceed."""
    scorers = {}

    def of(kind):
        if kind not in scorers:
            try:
                spec = ScorerSpec(kind=kind, **_options(kind, request))
                scorers[kind] = build(kind.replace("-", "_"), spec, Execution(deadline_s=0.05))
            except UserError as error:
                pytest.skip(str(error))
        return scorers[kind]

    return of


def _tolerance(kind):
    """Return 0, or 1e-6 for networks, whose matrix products round differently with their shapes."""
    return 1e-6 if runs_on_gpu(ScorerSpec(kind=kind)) else 0.0


def _given(kind, documents):
    field = given_field(kind, ScorerSpec(kind=kind)) if kind == "column" else None
    return [each if field is None else with_field(each, field) for each in documents]


def _ordinary(kind, scorer):
    documents = ordinary_documents(scorer)
    texts = PROSE if documents[0].kind == "prose" else CODE
    return _given(kind, [*documents, *(document(text, documents[0].kind) for text in texts)])


def _hostile(kind, scorer, size, only=None):
    found = hostile_documents(ordinary_documents(scorer)[0].kind, size, only)
    return {name: _given(kind, [each])[0] for name, each in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_finite_floats_one_a_sentence(scorer_of, kind):
    scorer = scorer_of(kind)
    assert isinstance(scorer, Scorer)
    assert scorer.name == kind.replace("-", "_")
    check_scores(scorer, _ordinary(kind, scorer))


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_other_documents_or_their_order(scorer_of, kind):
    scorer = scorer_of(kind)
    check_order(scorer, _ordinary(kind, scorer), _tolerance(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_documents_leave_no_state_behind(scorer_of, kind):
    scorer = scorer_of(kind)
    strange = list(_hostile(kind, scorer, 400).values())
    check_forgets(scorer, _ordinary(kind, scorer), strange, _tolerance(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_document_gives_scores_or_a_reason_in_time(hurried, kind):
    scorer = hurried(kind)
    for name, each in _hostile(kind, scorer, 10_000).items():
        check_survives(scorer, each, name, BOUND_S)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "size"), [("one line", 1_000_000), ("only newlines", 100_000)])
def test_a_large_document_keeps_to_its_deadline(hurried, kind, name, size):
    scorer = hurried(kind)
    each = _hostile(kind, scorer, size, [name])[name]
    result = check_survives(scorer, each, name, BOUND_S)
    assert not isinstance(result, ScoringError) or result.reason == "deadline"


@pytest.mark.parametrize("kind", KINDS)
def test_documents_that_exceed_their_deadline_leave_no_state_behind(hurried, scorer_of, kind):
    scorer = hurried(kind)
    large = _hostile(kind, scorer, 100_000, ["digits"])["digits"]
    small = _given(kind, [document("x = 1  # one\n", large.kind)])
    (expected,) = scorer_of(kind).score(small)
    scorer.score([large])
    result = scorer.score([large, *small])[1]
    if isinstance(result, ScoringError):
        # Rebuilding what the large document left incomplete may take longer than the small one's deadline.
        assert result.reason == "deadline"
    else:
        np.testing.assert_allclose(result, expected, atol=_tolerance(kind), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_document_has_no_scores(scorer_of, kind):
    check_scores(scorer_of(kind), _given(kind, [document("", "python")]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_scorer_applies_to_python(scorer_of, kind):
    assert scorer_of(kind).applies(document("x", "python"))


def test_linters_do_not_apply_to_prose(scorer_of):
    prose = document("x", "prose")
    assert not any(scorer_of(kind).applies(prose) for kind in ("pycodestyle", "pylint", "ruff"))
    assert all(scorer_of(kind).applies(prose) for kind in ("linear", "scrubadub", "detoxify", "column"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scorer_declares_the_kind_of_documents_that_it_applies_to(scorer_of, kind):
    applies = [each for each in ("prose", "python") if scorer_of(kind).applies(document("x", each))]
    declared = documents_of(ScorerSpec(kind=kind))
    assert applies == (["prose", "python"] if declared is None else [declared])


class Broken:
    """A scorer with one fault."""

    name, fingerprint = "broken", "broken"

    def __init__(self, fault):
        self.fault = fault
        self.calls = 0

    def applies(self, document):
        return True

    def score(self, documents):
        self.calls += 1
        if self.fault == "raises" and any(len(each.text) > 1000 for each in documents):
            raise ValueError("too long")
        if self.fault == "slow" and any(len(each.text) > 1000 for each in documents):
            time.sleep(0.1)
        results = [np.full(len(each.ends), 0.5, np.float32) for each in documents]
        if self.fault == "batch":
            results = [each * len(documents) for each in results]
        if self.fault == "remembers":
            results = [each + self.calls for each in results]
        if self.fault == "double":
            results = [each.astype(np.float64) for each in results]
        if self.fault == "negative":
            results = [-each for each in results]
        if self.fault == "shape":
            results = [each[:1] for each in results]
        if self.fault == "short":
            results = results[1:]
        return results


def test_the_checks_pass_a_correct_scorer():
    check(Broken(None), hostile_size=2_000)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "not raise: ValueError"),
        ("slow", "more than 0.05 s"),
        ("batch", "differ by"),
        ("remembers", "differ by"),
        ("double", "float32"),
        ("negative", ">= 0"),
        ("shape", "one a sentence"),
        ("short", "one result for each"),
    ],
)
def test_the_checks_find_and_name_each_fault(fault, message):
    with pytest.raises(AssertionError, match=message):
        check(Broken(fault), hostile_size=2_000, seconds=0.05)


def test_a_scoring_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ScoringError("deadline", "took long")))
    assert (error.reason, error.detail) == ("deadline", "took long")
