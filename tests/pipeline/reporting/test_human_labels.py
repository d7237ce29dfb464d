"""Agreement of scores with sentences that people labelled."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.dataset import open_dataset
from pipeline.reporting.human_labels import HumanLabels, calibrate, find_scores, read_labels
from scorers.errors import UserError
from tests.datasets import make_dataset


def labels_of(misaligned, weights=None):
    n = len(misaligned)
    return HumanLabels(
        [f"row {i}" for i in range(n)], [f"d{i}" for i in range(n)],
        np.zeros(n, dtype=np.int64), np.array(misaligned, dtype=bool),
        np.ones(n) if weights is None else np.asarray(weights, dtype=float),
    )  # fmt: skip


def test_figures_at_a_threshold_by_hand():
    scores = np.array([0.1, 0.2, 0.6, 0.7, 0.9], dtype=np.float32)
    found = calibrate(
        labels_of([False, True, False, True, True], [1, 2, 3, 1, 1]), scores,
        np.array([0.0, 0.5, 0.65, 0.95], dtype=np.float32),
    )  # fmt: skip
    assert [each and each.value for each in found.precision] == [4 / 8, 2 / 5, 1.0, None]
    assert [each.value for each in found.recall] == [1.0, 2 / 4, 2 / 4, 0.0]
    assert [each.value for each in found.false_positive_rate] == [1.0, 3 / 4, 0.0, 0.0]
    assert (found.labelled, found.misaligned) == (5, 3)


@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_those_of_scikit_learn(ties):
    generator = np.random.default_rng(5)
    misaligned = generator.random(300) < 0.2
    scores = (generator.random(300) * 0.6 + misaligned * 0.3).astype(np.float32)
    if ties:
        scores = scores.round(1)
    weights = generator.integers(1, 9, 300).astype(float)
    found = calibrate(labels_of(misaligned, weights), scores, np.array([0.0, 1.0], dtype=np.float32))
    assert found.area.value == pytest.approx(roc_auc_score(misaligned, scores, sample_weight=weights))
    assert found.average_precision.value == pytest.approx(
        average_precision_score(misaligned, scores, sample_weight=weights)
    )
    assert found.area.low < found.area.value < found.area.high
    assert found.area.high - found.area.low < 0.2


def test_an_interval_holds_the_truth_about_as_often_as_it_claims():
    generator, hits = np.random.default_rng(7), 0
    for trial in range(60):
        misaligned = generator.random(150) < 0.4
        scores = np.where(generator.random(150) < 0.8, misaligned, ~misaligned).astype(np.float32)
        recall = calibrate(labels_of(misaligned), scores, np.array([0.5], dtype=np.float32), seed=trial).recall[0]
        hits += recall.low <= 0.8 <= recall.high
    assert hits >= 51  # 57 expected; fewer than 51 has a probability below 1 %


@pytest.fixture
def dataset(tmp_path):
    made = make_dataset(
        tmp_path / "labelled", ["a b ", "c d e "], {"toxicity": [[0.1, 0.2], [0.3, 0.4, 0.5]]}, {"toxicity": 0.3},
        split=lambda text, kind: [f"{word} " for word in text.split()],
    )  # fmt: skip
    return open_dataset(str(made))


ROWS = [
    {"doc_id": "corpus.jsonl#1", "sentence": 2, "misaligned": True},
    {"doc_id": "corpus.jsonl#0", "sentence": 1, "misaligned": False},
]


def written(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_reads_labels_and_finds_their_scores(tmp_path, dataset, suffix):
    labels = read_labels(written(tmp_path / f"labels.{suffix}", ROWS))
    assert labels.misaligned.tolist() == [True, False]
    assert find_scores(dataset, "toxicity", labels).tolist() == [np.float32(0.5), np.float32(0.2)]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"doc_id": "a", "sentence": 0}], "has no field 'misaligned'"),
        ([ROWS[0], {**ROWS[1], "sentence": -1}], "line 2: sentence is not a whole number"),
        ([ROWS[0], {**ROWS[1], "misaligned": 2}], "line 2: misaligned is neither"),
        ([{**ROWS[0], "weight": 0}], "line 1: weight is not a number from 1e-100"),
        ([{**ROWS[0], "weight": 1e308}], "line 1: weight is not a number from 1e-100"),
        ([{**ROWS[0], "weight": 5e-324}], "line 1: weight is not a number from 1e-100"),
        ([ROWS[0], ROWS[1], ROWS[0]], "line 3: this sentence has a label already"),
        ([], "the file is empty"),
    ],
)
def test_wrong_labels_are_refused_by_row(tmp_path, rows, problem):
    with pytest.raises(UserError, match=problem):
        read_labels(written(tmp_path / "labels.jsonl", rows))


def test_broken_files_are_refused_without_their_text(tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"doc_id": "secret text\n')
    with pytest.raises(UserError, match="line 1: not valid JSON") as caught:
        read_labels(str(tmp_path / "labels.jsonl"))
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match=r"Labels .*missing\.csv: cannot be read: No such file"):
        read_labels(str(tmp_path / "missing.csv"))
    with pytest.raises(UserError, match="unknown kind of file"):
        read_labels(written(tmp_path / "labels.txt", ROWS))


def test_a_pipe_and_too_much_are_refused(tmp_path):
    os.mkfifo(tmp_path / "labels.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(str(tmp_path / "labels.jsonl"))
    # Ten kilobytes that hold 300 MB.
    rows = pa.table({"doc_id": ["a" * 300_000] * 1000, "sentence": range(1000), "misaligned": [True] * 1000})
    pq.write_table(rows, tmp_path / "labels.parquet", compression="zstd")
    assert (tmp_path / "labels.parquet").stat().st_size < 100_000
    with pytest.raises(UserError, match="holds more than 67,108,864 bytes"):
        read_labels(str(tmp_path / "labels.parquet"))


def test_labels_of_sentences_that_the_dataset_lacks_are_refused(tmp_path, dataset):
    labels = read_labels(written(tmp_path / "labels.jsonl", [*ROWS, {**ROWS[0], "sentence": 3}]))
    with pytest.raises(UserError, match=r"line 3: .* has no score of toxicity .* \(so for 1 of 3 rows\)"):
        find_scores(dataset, "toxicity", labels)


def test_labels_of_one_kind_alone_are_refused():
    with pytest.raises(UserError, match="call every sentence aligned"):
        calibrate(labels_of([False, False]), np.array([0.1, 0.2], dtype=np.float32), np.array([0.1], dtype=np.float32))
