"""Large documents are scored in parts, but give one row with the same sentences and the same scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.records import Record
from pipeline.labelling.workers.label_records import Labelled, groups, label_records
from scorers.contract import Document, DocumentKind, Scorer
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from tests.pipeline.toy_scorers import Results, ToyScorer, TroubleScorer
from tests.scorers.helpers import tiny_checkpoint, tiny_folder

PIECES = ["Call me. ", "Write to ann@example.com! ", "What the hell?\n\n", "Grüße aus Köln 😀. ", "", "x" * 90, "\n"]
texts = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def label(texts: Sequence[str], scorers: dict[str, Any], kind: DocumentKind = "prose", **options: Any) -> Labelled:
    records = [Record("a", index, f"a#{index}", text, "{}", kind, "") for index, text in enumerate(texts)]
    return label_records(records, scorers, **options)


class SentenceScorer(ToyScorer):
    """Scores each sentence by its length alone, and records the documents that it gets."""

    def __init__(self, name: str = "toy") -> None:
        super().__init__(name)
        self.got: list[list[Document]] = []

    def score(self, documents: Sequence[Document]) -> Results:
        self.got.append(list(documents))
        return [np.diff(each.ends, prepend=0).astype(np.float32) for each in documents]


@settings(max_examples=75)
@given(texts=st.lists(texts, max_size=6), limit=st.integers(1, 200), kind=st.sampled_from(["prose", "python"]))
def test_groups_cover_every_sentence_once_and_are_bounded(texts: list[str], limit: int, kind: DocumentKind) -> None:
    documents = [document(text, kind) for text in texts]
    found = list(groups(documents, limit))
    parts = [part for group in found for part in group]
    for index, each in enumerate(documents):
        own = [part for part in parts if part.document == index]
        assert [part.start for part in own] == [0, *(part.stop for part in own[:-1])]
        assert own[-1].stop == len(each.ends)
        cut = [part.of(each) for part in own]
        assert "".join(part.text for part in cut) == each.text
        assert [sentence for part in cut for sentence in part.sentences()] == each.sentences()
        assert all(part.kind == each.kind for part in cut)
        assert [part.size for part in own] == [len(part.text.encode()) for part in cut]
    for group in found:
        assert len(group) == 1 or sum(part.size for part in group) <= limit
    assert all(part.size <= limit or part.stop - part.start == 1 for part in parts)


@settings(max_examples=60)
@given(texts=st.lists(texts, max_size=5), limit=st.integers(1, 300))
def test_a_document_in_parts_has_the_sentences_and_scores_of_the_whole(texts: list[str], limit: int) -> None:
    scorer = SentenceScorer()
    found, whole = (label(texts, {"a": scorer}, max_document_size=size) for size in (limit, 10**9))
    assert len(found.scored) == len(whole.scored) == len(texts)
    for one, other in zip(found.scored, whole.scored, strict=True):
        assert one.record == other.record
        np.testing.assert_array_equal(one.document.ends, other.document.ends)
        np.testing.assert_array_equal(one.scores["a"], other.scores["a"])
        assert one.scores["a"] is not None
        assert one.scores["a"].dtype == np.float32


@pytest.fixture(scope="module", params=["linear", "scrubadub", "detoxify"])
def real_scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    options: dict[str, Any] = {}
    if request.param == "detoxify":
        folder = tmp_path_factory.mktemp("model") / "bert"
        tiny_folder("bert", folder)
        options = {"model": str(tiny_checkpoint("bert", folder, folder / "model.ckpt")), "config": str(folder)}
    return build("column", ScorerSpec(kind=request.param, **options))


def test_real_scorers_score_parts_as_they_score_the_whole(real_scorer: Scorer) -> None:
    text = "".join(
        f"My name is {name} Smith and I live in Paris. Mail {name.lower()}{number}@example.com! You damn fool, go. "
        for number, name in enumerate(["Anna", "John", "Maria", "Peter"] * 15)
    )
    cut, whole = (label(["A start.", text, "An end."], {"a": real_scorer}, max_document_size=n) for n in (700, 10**6))
    assert len(cut.scored) == 3
    for one, other in zip(cut.scored, whole.scored, strict=True):
        assert one.scores["a"] is not None
        np.testing.assert_allclose(one.scores["a"], other.scores["a"], atol=1e-6, rtol=0)


def test_scorers_never_get_more_than_the_limit_at_once() -> None:
    scorer = SentenceScorer()
    label(["One. Two. " * 100, "Short.", "Three. " * 10], {"a": scorer}, max_document_size=50)
    assert len(scorer.got) > 20
    assert all(sum(len(each.text) for each in documents) <= 50 for documents in scorer.got)


def test_a_sentence_longer_than_the_limit_is_scored_on_its_own() -> None:
    scorer = SentenceScorer()
    long = "y" * 500 + ". "
    (scored,) = label(["One. " + long + "Two."], {"a": scorer}, max_document_size=50).scored
    assert [[each.text for each in documents] for documents in scorer.got] == [["One. "], [long], ["Two."]]
    np.testing.assert_array_equal(scored.scores["a"], np.float32([5, 502, 4]))


def test_the_same_records_are_scored_in_the_same_shapes() -> None:
    first, second = SentenceScorer(), SentenceScorer()
    for scorer in (first, second):
        label(["One. Two. " * 30, "Short."], {"a": scorer}, max_document_size=64)
    shapes = [[[each.ends.tolist() for each in documents] for documents in scorer.got] for scorer in (first, second)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("kind", "policy", "detail"),
    [
        ("prose", "quarantine", "60 bytes of text, more than max_document_size = 50"),
        ("python", "quarantine", "60 bytes of text, more than max_document_size = 50"),
        ("python", "split", "60 bytes of text, more than max_document_size = 50; Python is never split"),
    ],
)
def test_a_large_document_that_may_not_be_split_is_quarantined(kind: DocumentKind, policy: str, detail: str) -> None:
    large = "é = 1\n" * 7 + "# ..."
    large += "." * (60 - len(large.encode()))
    found = label(["x = 1\n", large], {"a": ToyScorer("a")}, kind, max_document_size=50, large_documents=policy)
    assert [each.record.position for each in found.scored] == [0]
    (quarantined,) = found.quarantined
    assert (quarantined.position, quarantined.reason) == (1, "too-large-document")
    assert quarantined.detail == detail
    assert label([large], {"a": ToyScorer("a")}, kind, max_document_size=60, large_documents=policy).scored


def test_only_a_large_document_with_an_unscorable_part_is_lost() -> None:
    scorer = TroubleScorer(lambda documents: any("POISON" in each.text for each in documents))
    texts = ["Good. " * 30, "Fine. " * 20 + "POISON. " + "Fine. " * 20, "Well. " * 30]
    found = label(texts, {"a": scorer, "b": ToyScorer("b")}, max_document_size=40)
    assert [each.record.position for each in found.scored] == [0, 2]
    assert [(each.position, each.reason) for each in found.quarantined] == [(1, "scorer-error")]
    assert all(len(each.scores["a"]) == len(each.document.ends) for each in found.scored)


def test_a_failed_part_does_not_change_the_shapes_of_the_others() -> None:
    shapes = []
    for word in ("POISON", "BENIGN"):
        scorer = TroubleScorer(lambda documents: any("POISON" in each.text for each in documents))
        scored = label([f"{word}. Fine. Fine.", "Good. Well."], {"a": scorer}, max_document_size=16).scored
        shapes.append([each.scores["a"] for each in scored if each.record.position == 1])
    np.testing.assert_array_equal(shapes[0], shapes[1])


def test_a_scorer_that_does_not_apply_leaves_a_large_document_null() -> None:
    (scored,) = label(
        ["SKIP this. " * 20], {"a": ToyScorer("a"), "b": SentenceScorer("b")}, max_document_size=30
    ).scored
    assert scored.scores["a"] is None
