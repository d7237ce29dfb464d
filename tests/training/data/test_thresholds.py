import json
from fractions import Fraction

import numpy as np
import pytest

from pipeline.dataset.manifest import MANIFEST_NAME, ScorerEntry
from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.training.stores import byte_tokenizer
from training.data.prepare import prepare
from training.data.thresholds import quantile
from training.objectives import OBJECTIVES
from training.settings import resolve_config

DETOXIFY = {"toxicity": ScorerEntry(kind="detoxify", options={"model": "unbiased"}, fingerprint="f")}
# Document n has the sentence scores n/1000 and (n+1)/1000: means from 0.0005 to 0.0995.
TEXTS = [f"Sentence {n} is this. And another, number {n}." for n in range(100)]
SCORES = [[n / 1000, (n + 1) / 1000] for n in range(100)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "bytes"
    byte_tokenizer(TEXTS).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prepared(tmp_path, tokenizer):
    def build(objective, *overrides, scores=SCORES, texts=TEXTS, thresholds=None, scorers=None, explicit=True):
        folder = tmp_path / "labelled"
        if not folder.exists():
            make_dataset(folder, texts, {"toxicity": scores}, thresholds, scorers=scorers)
            if explicit and thresholds:
                path = folder / MANIFEST_NAME
                manifest = json.loads(path.read_text())
                manifest["config"]["thresholds"] = thresholds
                path.write_text(json.dumps(manifest))
        flags = {"output": "o", "task": "toxicity", "data": {"dataset": str(folder), "tokenizer": tokenizer}}
        given = ["data.context_length=16", "data.held_out=0", f"objective.name={objective}", *overrides]
        return prepare(resolve_config(flags=flags, overrides=given))

    return build


@pytest.mark.parametrize("objective", ["conditional", "unlikelihood"])
def test_the_flag_overrides_the_dataset(prepared, objective):
    data = prepared(objective, "objective.threshold=0.02", thresholds={"toxicity": 0.07})
    assert (data.threshold.value, data.threshold.origin) == (0.02, "flag")
    data = prepared(objective)
    assert data.threshold.origin == "manifest"
    assert data.threshold.value == np.float32(0.07)
    assert data.config.objective.threshold == data.threshold.value
    assert data.sentence_threshold == data.threshold


def test_a_flag_of_zero_is_valid(prepared):
    data = prepared("conditional", "objective.threshold=0")
    assert data.threshold.value == 0
    assert data.stream.options.tag_bounds == (0,)
    assert data.stream.count_aligned(0)[0] == 1


@pytest.mark.parametrize(
    ("objective", "value"), [("conditional", 5.6e-4), ("unlikelihood", 7.8e-4), ("filtering", 7.8e-4)]
)
def test_the_papers_scorer_with_the_default_threshold_uses_the_preset(prepared, objective, value):
    data = prepared(objective, "data.context_length=4", scorers=DETOXIFY)
    assert (data.threshold.value, data.threshold.origin) == (value, "preset")
    # Reports compare runs of all objectives by one threshold; the loss uses its own.
    assert data.sentence_threshold.value == 5.6e-4
    if objective == "unlikelihood":
        assert data.objective.threshold == value


@pytest.mark.parametrize(("spec", "explicit"), [("p60", False), ("p50", True), (0.02, True)])
def test_an_explicit_threshold_of_the_dataset_overrides_the_preset(prepared, spec, explicit):
    data = prepared("conditional", scorers=DETOXIFY, thresholds={"toxicity": spec}, explicit=explicit)
    assert data.threshold.origin == "manifest"


def test_presets_do_not_apply_to_another_scorer(prepared):
    assert prepared("conditional").threshold.origin == "manifest"
    data = prepared("filtering")
    assert data.threshold.origin == "percentile"
    assert data.stream.statistics["documents_used"] == 50
    assert data.threshold.value == pytest.approx(0.0495)


@pytest.mark.parametrize(("spec", "kept"), [("p25", 25), ("p99.5", None), (0.0105, 11)])
def test_filtering_takes_the_datasets_percentile_over_document_means(prepared, spec, kept):
    if kept is None:
        with pytest.raises(UserError, match="every document of the stream is aligned"):
            prepared("filtering", thresholds={"toxicity": spec})
        return
    # 0.0105 of sentences: 21 of 200 scores are at most that, so 10.5 % of 100 documents, rounded up.
    assert prepared("filtering", thresholds={"toxicity": spec}).stream.statistics["documents_used"] == kept


def test_the_flag_of_filtering_applies_to_document_means(prepared):
    data = prepared("filtering", "objective.threshold=0.0305", thresholds={"toxicity": 0.07})
    assert (data.threshold.value, data.threshold.origin) == (0.0305, "flag")
    assert data.stream.options.filter_threshold == pytest.approx(0.0305)
    assert data.sentence_threshold.value == np.float32(0.07)
    assert data.stream.statistics["documents_used"] in (30, 31)  # 0.0305 is itself a mean, up to rounding


def test_a_document_of_one_aligned_sentence_is_kept(prepared):
    scores = [[0.1], [0.5]] * 50
    data = prepared("filtering", "objective.threshold=0.1", scores=scores, texts=[f"Number {n}." for n in range(100)])
    assert data.stream.statistics["documents_used"] == 50
    assert prepared("conditional", "objective.threshold=0.1").stream.count_aligned(0.1)[0] == 50


@pytest.mark.parametrize("objective", ["mle", "rwr", "awr", "unlikelihood_soft"])
def test_objectives_without_a_threshold_have_one_for_reports(prepared, objective):
    data = prepared(objective)
    assert data.threshold is None
    assert data.config.objective.threshold is None
    assert data.sentence_threshold.origin == "manifest"
    assert data.stream.options.tag_bounds is None
    assert data.stream.options.filter_threshold is None


@pytest.mark.parametrize(
    ("objective", "threshold", "message"),
    [
        ("conditional", 5, r"every sentence of the stream is aligned \(score <= 5\), so conditional has nothing"),
        ("unlikelihood", 5, r"every sentence .* so unlikelihood has nothing"),
        ("filtering", 5, r"every document of the stream is aligned \(mean score <= 5\)"),
        ("filtering", 0.0001, r"no document of the stream is aligned"),
    ],
)
def test_a_one_sided_threshold_is_refused_with_suggestions(prepared, objective, threshold, message):
    with pytest.raises(UserError, match=message) as caught:
        prepared(objective, f"objective.threshold={threshold}")
    text = str(caught.value)
    suggestions = text.partition("would work: ")[2].partition(". Set")[0].split(", ")
    assert len(suggestions) > 5
    for suggestion in suggestions:
        value, share = suggestion.split(" (")
        data = prepared(objective, f"objective.threshold={value}", "data.context_length=4")
        if objective == "filtering":
            found = data.stream.statistics["documents_used"] / 100
        else:
            aligned, sentences = data.stream.count_aligned(float(value))
            found = aligned / sentences
        assert found == pytest.approx(float(share.split("%")[0]) / 100, abs=0.0051)


def test_no_sentence_below_the_threshold(prepared):
    scores = [[0.5, 0.7]] * 100
    with pytest.raises(UserError, match=r"no sentence .*would work: 0\.5 \(50\.0% aligned\)\. Set"):
        prepared("conditional", "objective.threshold=0.4", scores=scores)


def test_scores_that_are_all_the_same_cannot_be_divided(prepared):
    with pytest.raises(UserError, match=r"All of them have the same score.*objective mle"):
        prepared("conditional", scores=[[0.0, 0.0]] * 100)
    assert prepared("mle").stream.num_blocks > 0


def test_an_empty_stream_is_refused_with_counts(prepared):
    with pytest.raises(UserError, match=r"nothing to train on.*0 of 100 documents.*100 null score"):
        prepared("mle", scores=[None] * 100)


def test_a_block_longer_than_the_stream_is_refused(prepared):
    with pytest.raises(UserError, match=r"nothing to train on.*a block needs 100000.*Lower data\.context_length"):
        prepared("mle", "data.context_length=100000")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.column=pii"], "no score column 'pii'; it has: toxicity"),
        (["objective.drop_tags=0.5"], r"mle has no tags to drop.*objective\.drop_tags"),
        (["objective.alpha=0.5"], "mle has no alpha"),
        (["data.tokenizer=/nowhere/at/all"], "Cannot load the tokenizer"),
        (["data.dataset=/nowhere"], "nothing at /nowhere"),
    ],
)
def test_invalid_combinations_are_refused_before_any_work(prepared, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared("mle", *overrides)
    assert not (tmp_path / "labelled.tokens").exists()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_prepared(prepared, objective):
    targets = ["objective.targets={toxicity<=0.05: 0.8}"] if objective == "target" else []
    data = prepared(objective, "training.batch_size=3", *targets)
    batch = data.batches.batch(0)
    assert batch.input_ids.shape == (3, 16)
    assert data.objective.name == objective
    tags = set(data.tokenizer.control_ids(2))
    assert bool(tags & set(batch.input_ids.ravel().tolist())) == (objective == "conditional")


def test_a_decoded_stream_has_the_right_tag_before_each_sentence(prepared):
    data = prepared("conditional", "objective.drop_tags=0", "objective.threshold=0.05")
    ids = data.stream.blocks(range(data.stream.num_blocks)).input_ids.ravel()
    text = data.tokenizer.with_control_tokens().decode(ids)
    expected = "".join(
        "<|endoftext|>"
        + f"<|{'aligned' if n <= 50 else 'misaligned'}|>Sentence {n} is this. "
        + f"<|{'aligned' if n + 1 <= 50 else 'misaligned'}|>And another, number {n}."
        for n in range(100)
    )
    assert expected.startswith(text)
    assert len(text) > len(expected) - 100


def test_the_trained_tokenizer_is_the_default(tmp_path):
    make_dataset(tmp_path / "labelled", TEXTS, {"toxicity": SCORES})
    flags = {"output": "o", "task": "toxicity", "data": {"dataset": str(tmp_path / "labelled"), "vocab_size": 300}}
    stages = []
    config = resolve_config(flags=flags, overrides=["data.context_length=16"])
    data = prepare(config, lambda stage, done, total: stages.append((stage, done, total)))
    assert data.tokenizer.base_size <= 300
    assert {stage for stage, _, _ in stages} == {"tokenizer", "tokens", "round trips"}
    assert stages[-1] == ("round trips", 100, 100)
    assert prepare(config).store.path == data.store.path


def test_quantiles_are_inverse_cdfs():
    values = np.array([3.0, 1.0, 2.0, 4.0])
    assert [quantile(values, Fraction(n, 4)) for n in range(5)] == [1.0, 1.0, 2.0, 3.0, 4.0]
    assert quantile(values, Fraction(51, 100)) == 3.0
