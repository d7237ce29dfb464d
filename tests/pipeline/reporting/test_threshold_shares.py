"""What each threshold would keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset import open_dataset
from pipeline.dataset.quantiles import ScoreCounter
from pipeline.reporting.report_page import format_threshold
from pipeline.reporting.threshold_shares import count_shares, thresholds_near_quantiles
from scorers.errors import UserError
from tests.datasets import make_dataset

SENTENCES = ["One. ", "Twö words. ", "Three small words. "]


def split(text, kind):
    return [each for each in SENTENCES if each in text]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    generator = np.random.default_rng(3)
    texts = ["".join(SENTENCES[: 1 + index % 3]) if index % 11 else "" for index in range(400)]
    scores = [
        None
        if index % 17 == 1
        else [float(np.float32(x)) for x in generator.gamma(0.3, 0.1, size=len(split(text, "")))]
        for index, text in enumerate(texts)
    ]
    metas = [{"site": f"s{index % 15}" if index % 15 else None, "n": index % 2} for index in range(400)]
    folder = make_dataset(
        tmp_path_factory.mktemp("shares") / "labelled",
        texts,
        {"toxicity": scores},
        {"toxicity": 0.013},
        split=split,
        shard_rows=150,
        metas=metas,
    )
    return open_dataset(str(folder)), texts, scores, metas


def naive(texts, scores, threshold, keep):
    """Sentences, characters, documents, characters of documents at or below a threshold."""
    counts = np.zeros(4, dtype=np.int64)
    for index, (text, values) in enumerate(zip(texts, scores, strict=True)):
        if values and keep(index):
            sizes = [len(each) for each in split(text, "")]
            below = [np.float32(value) <= threshold for value in values]
            counts[:2] += [sum(below), sum(size for size, is_below in zip(sizes, below, strict=True) if is_below)]
            if np.float32(np.mean(values)) <= threshold:
                counts[2:] += [1, sum(sizes)]
    return counts.tolist()


def counts_at(group, index):
    return [each[index] for each in (group.sentences, group.characters, group.documents, group.document_characters)]


def test_counts_every_threshold_exactly(made):
    dataset, texts, scores, _ = made
    (found,) = count_shares(dataset, ["toxicity"])
    assert found.groups == []
    assert found.documents_null == sum(each is None for each in scores)
    assert len(found.thresholds) > 60
    assert found.thresholds[found.committed_index] == np.float32(0.013)
    for index, threshold in enumerate(found.thresholds):
        assert counts_at(found.whole, index) == naive(texts, scores, threshold, lambda _: True)
    assert counts_at(found.whole, -1) == naive(texts, scores, np.inf, lambda _: True)


def test_groups_by_metadata_sum_to_the_whole(made):
    dataset, texts, scores, metas = made
    (found,) = count_shares(dataset, ["toxicity"], by="site")
    names = [each.name for each in found.groups]
    assert len(names) == 13
    assert names[-1] == "other"  # two of the fourteen sites, and the documents without one
    for group in found.groups[:-1]:
        expected = naive(
            texts, scores, found.thresholds[40], lambda index, name=group.name: metas[index]["site"] == name
        )
        assert counts_at(group, 40) == expected
    for kind in ("sentences", "characters", "documents", "document_characters"):
        assert (sum(getattr(each, kind) for each in found.groups) == getattr(found.whole, kind)).all()


def test_groups_by_inputs_and_by_numbers(made):
    dataset = made[0]
    (found,) = count_shares(dataset, ["toxicity"], by="inputs")
    assert [each.name for each in found.groups] == ["corpus.jsonl"]
    (found,) = count_shares(dataset, ["toxicity"], by="n")
    assert sorted(each.name for each in found.groups) == ["0", "1"]


def test_dots_lead_into_objects_and_strange_metadata_is_no_group(tmp_path):
    folder = make_dataset(
        tmp_path / "nested", ["One. "] * 4, {"toxicity": [[0.1]] * 4}, {"toxicity": 0.5}, split=split,
        metas=[{"meta": {"site": "a"}}, {"meta": "text"}, [1], {"meta": {"site": "a"}}],
    )  # fmt: skip
    (found,) = count_shares(open_dataset(str(folder)), ["toxicity"], by="meta.site")
    assert [(each.name, each.documents[-1]) for each in found.groups] == [("a", 2), ("other", 2)]


def test_a_field_that_no_document_has_is_refused(made):
    with pytest.raises(
        UserError, match=r"--by sight: no document of .*Give one of its fields \('site', 'n'\), or --by inputs"
    ):
        count_shares(made[0], ["toxicity"], by="sight")


def test_documents_without_scores_give_empty_counts(tmp_path):
    folder = make_dataset(tmp_path / "none", ["One. ", "One. "], {"pep8": [None, None]}, {"pep8": 0.0}, split=split)
    (found,) = count_shares(open_dataset(str(folder)), ["pep8"])
    assert found.documents_null == 2
    assert found.whole.sentences.tolist() == [0] * len(found.thresholds)


scores_strategy = st.lists(st.floats(0, 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=30)


@given(scores_strategy, st.floats(0, 128, width=32, allow_subnormal=False))
@settings(max_examples=60)
def test_thresholds_cover_every_score_and_read_back_as_written(values, committed):
    counter = ScoreCounter()
    counter.add(np.array(values, dtype=np.float32))
    thresholds = thresholds_near_quantiles(counter, committed)
    assert (np.diff(thresholds) > 0).all()
    assert thresholds[0] == 0
    assert thresholds[-1] >= max(values)
    for each in thresholds:
        assert np.float32(format_threshold(each)) == each
