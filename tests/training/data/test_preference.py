"""Quantile tags and several columns: in streams, in runs and in their evaluation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from typer.testing import CliRunner

import phf
from pipeline.dataset.tags import is_aligned
from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.training.stores import byte_tokenizer
from training.data.combined import Combination, CombinedStore
from training.data.preference import quantile_bounds
from training.data.prepare import prepare
from training.data.store import TokenStore
from training.runs.folder import RunFolder
from training.settings import resolve_config

TEXTS = [f"Sentence {n} is this. And another, number {n}." for n in range(100)]
# Toxicity increases from document 0 on; every other document has personal data in its second sentence; the last ten
# have no score for it.
TOXICITY = [[n / 1000, (n + 1) / 1000] for n in range(100)]
PII = [[0.0, 0.25 * (n % 2)] if n < 90 else None for n in range(100)]
TIES = [[0.0, 0.0] if n < 60 else [0.1, 0.5] for n in range(100)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "bytes"
    byte_tokenizer(TEXTS).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    scores = {"toxicity": TOXICITY, "pii": PII, "ties": TIES}
    return make_dataset(
        tmp_path_factory.mktemp("data") / "labelled", TEXTS, scores, {"toxicity": 0.06, "pii": 0.0, "ties": 0.0}
    )


@pytest.fixture
def prepared(dataset, tokenizer):
    def build(objective, *overrides, task="toxicity"):
        flags = {"output": "o", "task": task, "data": {"dataset": str(dataset), "tokenizer": tokenizer}}
        given = ["data.context_length=16", "data.held_out=0", f"objective.name={objective}", *overrides]
        return prepare(resolve_config(flags=flags, overrides=given))

    return build


BOTH = "data.columns={toxicity: 1, pii: 0.5}"
FLOATS = st.floats(0, 2.0**100, width=32)


@given(
    st_numpy.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0, 0.1, 0.2, 0.25, 1, 7])),
    st.integers(2, 9),
)
def test_quantile_classes_are_never_empty(scores, classes):
    if (scores == scores.max()).mean() > 1 - 1 / classes:
        with pytest.raises(UserError, match=f"objective.quantiles={classes}: so many"):
            quantile_bounds(scores, classes)
        return
    bounds = quantile_bounds(scores, classes)
    assert bounds == sorted(set(bounds))
    assert 1 <= len(bounds) < classes
    sizes = np.bincount(np.searchsorted(np.array(bounds, dtype=np.float32), scores))
    assert (sizes > 0).all()
    assert len(sizes) == len(bounds) + 1
    # A class holds at most a quantile, plus ties at its upper bound.
    for size, bound in zip(sizes, [*bounds, scores.max()], strict=True):
        assert size <= -(-len(scores) // classes) + np.count_nonzero(scores == np.float32(bound))


def test_classes_are_equally_large_for_distinct_scores(prepared):
    data = prepared("conditional", "objective.quantiles=4", "objective.drop_tags=0", "data.column=toxicity")
    tags = data.stream.statistics["tags"]
    assert list(tags) == ["quantile_1", "quantile_2", "quantile_3", "quantile_4", "dropped"]
    assert sum(tags.values()) == 200
    assert all(abs(tags[f"quantile_{n}"] - 50) <= 1 for n in range(1, 5))
    assert data.threshold.origin == "quantiles"
    assert data.threshold.detail.startswith("4 classes, up to 0.025")
    assert data.config.objective.threshold is None
    again = prepare(data.config)
    assert again.stream.options == data.stream.options
    decoded = data.tokenizer.with_control_tokens(4).decode(data.stream.document(0).input_ids)
    assert decoded.startswith("<|endoftext|><|quantile_1|>Sentence 0 is this. <|quantile_1|>And")
    worst = data.tokenizer.with_control_tokens(4).decode(data.stream.document(99, swap_tags=True).input_ids)
    assert worst.startswith("<|endoftext|><|quantile_1|>Sentence 99")


def test_two_quantiles_split_at_the_median(prepared):
    halves = prepared("conditional", "objective.quantiles=2")
    median = halves.stream.options.tag_bounds[0]
    pair = prepared("conditional", f"objective.threshold={median!r}")
    assert halves.stream.options == pair.stream.options
    every = range(pair.stream.num_blocks)
    assert (halves.stream.blocks(every).input_ids == pair.stream.blocks(every).input_ids).all()
    assert halves.control_ids == halves.tokenizer.control_ids(2)


def test_equal_scores_share_a_class_and_the_plan_reports_it(prepared):
    data = prepared("conditional", "objective.quantiles=8", task="ties")
    assert "3 classes of 8 requested" in data.threshold.detail
    assert data.stream.options.tag_bounds == (0.0, float(np.float32(0.1)))
    assert data.control_ids == data.tokenizer.control_ids(3)


@given(
    st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20),
    st.tuples(FLOATS, FLOATS),
    st.tuples(st.floats(1e-30, 1e5), st.floats(1e-30, 1e5)),
)
@settings(max_examples=300)
def test_combined_alignment_requires_every_column(scores, limits, weights):
    combination = Combination((("a", weights[0]), ("b", weights[1])), limits)
    columns = [np.array(column, dtype=np.float32) for column in zip(*scores, strict=True)]
    # Scores at the threshold and next to it, where rounding matters.
    limits32 = np.array(limits, dtype=np.float32)
    near = [np.array([x, np.nextafter(x, np.float32(9e30)), np.nextafter(x, np.float32(-1))]) for x in limits32]
    columns = [
        np.concatenate([column, np.maximum(each, 0)]).astype(np.float32)
        for column, each in zip(columns, near, strict=True)
    ]
    combined = combination.sentences(columns)
    assert combined.dtype == np.float32
    expected = is_aligned(columns[0], limits[0]) & is_aligned(columns[1], limits[1])
    assert (is_aligned(combined, 0.0) == expected).all()
    means = combination.documents([column.astype(np.float64) for column in columns])
    assert ((means <= 0) == expected).all()


def test_documents_missing_a_score_are_left_out_and_counted(prepared):
    data = prepared("rwr", BOTH)
    assert data.stream.column == "1.0*toxicity+0.5*pii"
    assert data.stream.statistics["documents_left_out"]["null_score"] == 10
    assert data.stream.documents.tolist() == list(range(90))
    expected = [t + 0.5 * p for n in range(90) for t, p in zip(TOXICITY[n], PII[n], strict=True)]
    np.testing.assert_allclose(data.stream.sentence_scores(), np.float32(expected), rtol=1e-6)
    assert data.threshold is None
    assert (data.column, data.sentence_threshold.value) == ("toxicity", np.float32(0.06))
    scores = data.stream.block(0)[1]
    assert scores.max() <= 0.25 * 0.5 + 0.01


@pytest.mark.parametrize("objective", ["conditional", "unlikelihood"])
def test_a_sentence_is_aligned_only_if_all_columns_agree(prepared, objective):
    data = prepared(objective, BOTH, "objective.thresholds.toxicity=0.0505")
    assert data.threshold.origin == "columns"
    assert "toxicity <= 0.0505 (objective.threshold), pii <= 0 (the dataset's" in data.threshold.detail
    assert data.config.objective.thresholds == {"toxicity": 0.0505, "pii": 0.0}
    assert data.config.objective.threshold is None
    expected = [t <= 0.0505 and p <= 0 for n in range(90) for t, p in zip(TOXICITY[n], PII[n], strict=True)]
    assert (data.stream.sentence_scores() <= 0).tolist() == expected
    if objective == "conditional":
        assert data.stream.options.tag_bounds == (0.0,)
    else:
        assert data.objective.threshold == 0
    assert prepare(data.config).stream.column == data.stream.column


def test_filtering_keeps_documents_kept_by_every_column(prepared):
    data = prepared("filtering", BOTH, "objective.thresholds={toxicity: 0.0301, pii: 0.1}")
    assert data.stream.documents.tolist() == [n for n in range(30) if n % 2 == 0]


def test_quantiles_of_several_columns_use_their_weighted_sum(prepared):
    data = prepared("conditional", BOTH, "objective.quantiles=3")
    assert data.stream.column == "1.0*toxicity+0.5*pii"
    assert len(data.control_ids) == 3


def test_a_single_combined_column_has_its_own_scores(prepared):
    one, plain = prepared("rwr", "data.columns={toxicity: 1}"), prepared("rwr")
    every = range(plain.stream.num_blocks)
    assert (one.stream.blocks(every).scores == plain.stream.blocks(every).scores).all()


def test_combined_scores_of_a_large_store_are_cached(prepared, monkeypatch):
    import pickle

    from training.data import combined

    data = prepared("rwr", BOTH)
    expected = data.stream.sentence_scores().tolist()
    monkeypatch.setattr(combined, "_WORTH_KEEPING", 0)

    def scores():
        store = CombinedStore(TokenStore.open(data.store.path), Combination.of({"toxicity": 1.0, "pii": 0.5}))
        found = pickle.loads(pickle.dumps(store)).scores("1.0*toxicity+0.5*pii")
        return found[~np.isnan(found)].tolist()

    assert scores() == expected
    (file,) = (data.store.path / combined.FOLDER).iterdir()
    whole = file.read_bytes()
    monkeypatch.setattr(Combination, "sentences", None)
    assert scores() == expected
    monkeypatch.undo()
    monkeypatch.setattr(combined, "_WORTH_KEEPING", 0)
    file.write_bytes(b"ARROW1 but not really")
    assert scores() == expected
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("objective", "overrides", "message"),
    [
        ("mle", ["objective.quantiles=4"], "mle has no tags to give by quantiles"),
        ("conditional", ["objective.quantiles=1"], "objective.quantiles"),
        ("conditional", ["objective.quantiles=4", "objective.threshold=0.1"], "takes the place of a threshold"),
        ("conditional", [BOTH, "objective.threshold=0.1"], r"cannot serve several columns.*thresholds\.toxicity"),
        ("conditional", ["objective.thresholds.pii=0"], "For one column, set objective.threshold"),
        ("conditional", [BOTH, "objective.thresholds.pep8=0"], "no such column; it has: toxicity, pii"),
        ("conditional", [BOTH, "data.column=ties"], "data.column=ties is not one of data.columns"),
        ("conditional", ["data.columns={toxicity: 1, style: 1}"], "has no score column 'style'"),
        ("conditional", ["data.columns={toxicity: 0}"], "data.columns"),
        ("conditional", [BOTH, "objective.thresholds={toxicity: 9, pii: 9}"], "Set other objective.thresholds"),
        ("filtering", [BOTH, "objective.thresholds={toxicity: 9, pii: 9}"], "Set other objective.thresholds"),
    ],
)
def test_conflicting_settings_are_refused(prepared, objective, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(objective, *overrides)


def test_the_command_accepts_columns_and_reports_errors(tmp_path, dataset, tokenizer):
    def train(*arguments):
        given = [str(dataset), "--output", str(tmp_path / "run"), "--task", "toxicity", "--model", "nano"]
        return CliRunner().invoke(phf.app, ["train", *given, "--tokenizer", tokenizer, *arguments])

    sizes = {
        "data.context_length": 16, "data.held_out": 0.1, "training.num_tokens": 256, "training.batch_size": 4,
        "tracking.tensorboard": "false", "training.log_every": 1, "objective.mask_control_tokens": "true",
        "objective.quantiles": 3,
    }  # fmt: skip
    result = train("--column", "toxicity", "--column", "style")
    assert result.exit_code == 2
    assert "has no score column 'style'" in result.output
    result = train("--objective", "conditional", "--set", "objective.quantiles=3", "--set", "objective.threshold=1")
    assert result.exit_code == 2
    assert "takes the place of a threshold" in result.output
    assert not (tmp_path / "run").exists()
    wanted = ["--objective", "conditional", "--column", "toxicity", "--column", "pii"]
    wanted += [part for key, value in sizes.items() for part in ("--set", f"{key}={value}")]
    for _ in range(2):  # the second call finds the finished run
        result = train(*wanted)
        assert result.exit_code == 0, result.output
    facts = RunFolder(tmp_path / "run").read_facts()
    assert facts.columns == {"toxicity": 1.0, "pii": 1.0}
    assert facts.threshold is not None
    assert facts.threshold.origin.startswith("quantiles: 3 classes, up to")
    assert facts.tokenizer.vocab_size == facts.tokenizer.control_ids[-1] + 1
    assert facts.stream["documents_left_out"]["null_score"] == 10
    result = train(*wanted, "--set", "objective.quantiles=4")
    assert result.exit_code == 2
    assert "objective.quantiles: 3 in the run, 4 now" in result.output
