import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from scorers import linear
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from tests.scorers.helpers import PROSE, documents, scores_of


@pytest.fixture
def folder(tmp_path):
    source = Path(next(iter(find_spec("profanity_check").submodule_search_locations))) / "data"
    return Path(shutil.copytree(source, tmp_path / "data"))


def test_the_scores_are_the_packages_own(built):
    from profanity_check import predict_prob

    given = documents(PROSE, "prose")
    for each, scores in zip(given, scores_of(built("linear"), *given), strict=True):
        expected = predict_prob(each.sentences()) if len(each.ends) else []
        np.testing.assert_array_equal(scores, np.asarray(expected, dtype=np.float32))


def test_swearing_scores_higher_than_praise(built):
    rude, kind = scores_of(built("linear"), document("You fucking bastard"), document("You lovely person"))
    assert rude[0] > 0.9
    assert kind[0] < 0.2


def test_more_sentences_than_a_batch(built, monkeypatch):
    monkeypatch.setattr(linear, "_BATCH", 7)
    many = document("You fucking bastard. You lovely person. " * 20)
    scores = scores_of(built("linear"), many)[0]
    assert len(scores) == 40
    assert (scores.reshape(20, 2) == scores[:2]).all()


def test_the_option_documents_decides_where_it_applies():
    scorer = build("toxicity", ScorerSpec(kind="linear", documents="prose"))
    assert scorer.applies(document("x"))
    assert not scorer.applies(document("x", "python"))


def test_the_packages_files_have_the_known_hashes(folder):
    linear.check_files(folder)


@pytest.mark.parametrize("name", linear.SHA256)
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink])
def test_a_file_that_differs_is_not_unpickled(folder, name, damage):
    damage(folder / name)
    with pytest.raises(
        UserError, match=f"{name} is not the file of alt-profanity-check.*pip install --force-reinstall"
    ):
        linear.check_files(folder)


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr("scorers.requirements.find_spec", lambda _name: None)
    with pytest.raises(
        UserError, match=r"needs profanity_check, which is not installed: pip install alt-profanity-check=="
    ):
        build("toxicity", ScorerSpec(kind="linear"))


def test_a_failing_batch_is_searched_for_the_document_that_fails(monkeypatch):
    scorer = build("toxicity", ScorerSpec(kind="linear"))
    predict = scorer._predict

    def fail(sentences):
        if any("trap" in sentence for sentence in sentences):
            raise ValueError("trap")
        return predict(sentences)

    good = document("You lovely person. Fine.")
    before = scores_of(scorer, good)[0]
    scorer._predict = fail
    first, second, third = scorer.score([good, document("a trap"), good])
    assert second.reason == "scorer-error"
    np.testing.assert_array_equal(first, before)
    np.testing.assert_array_equal(third, before)
