"""What holds for every scorer."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from scorers.contract import Scorer, ScoringError
from scorers.registry import KINDS
from scorers.sentences import document
from tests.scorers.helpers import CODE, PROSE, check_scores, documents, scores_of

LINTERS = ("pycodestyle", "pylint", "ruff")


def _documents(kind):
    if kind == "column":
        return [
            replace(each, given={"scores": [len(sentence) / 7 for sentence in each.sentences()]})
            for each in documents(PROSE, "prose")
        ]
    return documents(CODE, "python") if kind in LINTERS else documents(PROSE, "prose")


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_finite_floats_one_a_sentence(built, kind):
    scorer = built(kind)
    assert isinstance(scorer, Scorer)
    assert scorer.name == kind
    scores_of(scorer, *_documents(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_the_others_or_their_order(built, kind):
    scorer = built(kind)
    given = _documents(kind)
    together = scores_of(scorer, *given)
    backwards = scores_of(scorer, *reversed(given))[::-1]
    alone = [scores_of(scorer, each)[0] for each in given]
    tolerance = 1e-6 if kind == "detoxify" else 0
    for one, other, single in zip(together, backwards, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=0)
        np.testing.assert_allclose(one, single, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_document_has_no_scores_and_no_documents_none(built, kind):
    scorer = built(kind)
    check_scores(scorer.score([document("", "python")])[0], document("", "python"))
    assert scorer.score([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_linters_apply_to_python_and_the_others_to_any_document(built, kind):
    scorer = built(kind)
    assert scorer.applies(document("x", "python"))
    assert scorer.applies(document("x", "prose")) == (kind not in LINTERS)


def test_a_scoring_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ScoringError("deadline", "took long")))
    assert (error.reason, error.detail) == ("deadline", "took long")
