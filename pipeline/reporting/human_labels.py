"""Measure how well a column's scores agree with sentences that people have labelled.

A label file has one row per sentence (JSON lines, CSV or Parquet): `doc_id` and `sentence`, its index in the document
from 0, as `phf inspect --show-text --json` prints them; `misaligned`, true or false; and optionally `weight`, the
number of sentences of the corpus that it stands for, if the sentences were not drawn uniformly.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from scorers.errors import UserError
from scorers.records import read_records

RESAMPLES = 1000
_LARGEST = 64 * 1024 * 1024
_MOST_LABELS = 200_000
_LEAST_WEIGHT = 1e-100  # products of two sums of weights must neither vanish nor overflow
_AT_ONCE = 1 << 20  # resampled weights held at once
_FIELDS = ("doc_id", "sentence", "misaligned")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HumanLabels:
    """Labelled sentences, all of [n].

    Attributes:
        places: the file and the line or row of each, for messages.
        doc_ids: their documents.
        sentences: int64, indices within their documents.
        misaligned: the labels.
        weights: sentences of the corpus that each stands for.
    """

    places: list[str]
    doc_ids: list[str]
    sentences: NDArray[np.int64]
    misaligned: NDArray[np.bool_]
    weights: Floats


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its 95 % interval, which are None where nothing can be resampled."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Agreement of the scores with the labels; a score above a threshold predicts `misaligned`.

    Intervals are percentiles of 1,000 bootstrap samples of the labelled sentences.

    Attributes:
        labelled, misaligned: number of labelled sentences, and of those labelled misaligned.
        area: area under the ROC curve; average_precision: that under the precision-recall curve.
        precision, recall, false_positive_rate: a figure per threshold; precision is None where nothing is above it.
    """

    labelled: int
    misaligned: int
    area: Interval
    average_precision: Interval
    precision: list[Interval | None]
    recall: list[Interval]
    false_positive_rate: list[Interval]


def read_labels(path: str) -> HumanLabels:
    """Read a label file.

    Raises:
        UserError: it cannot be read, lacks a field, or a row is wrong; names the row.
    """
    records = read_records(path, "Labels", [*_FIELDS, "weight"], texts=["doc_id"], most=_MOST_LABELS, largest=_LARGEST)
    missing = [name for name in _FIELDS if all(name not in each.values for each in records)]
    if missing:
        raise UserError(
            f"{path} has no field {missing[0]!r}. Each row needs doc_id, sentence (from 0) and misaligned (true or "
            "false), and may have weight."
        )
    seen = set()
    for record in records:
        problem = _problem(record.values)
        place = (record.values.get("doc_id"), record.values.get("sentence"))
        if problem is None and place in seen:
            problem = "this sentence has a label already. Keep one label a sentence"
        if problem is not None:
            raise UserError(f"{record.where}: {problem}.")
        seen.add(place)
    rows = [each.values for each in records]
    return HumanLabels(
        [each.where for each in records],
        [row["doc_id"] for row in rows],
        np.array([row["sentence"] for row in rows], dtype=np.int64),
        np.array([row["misaligned"] for row in rows], dtype=bool),
        np.array([_weight(row) for row in rows], dtype=np.float64),
    )


def _problem(row: dict[str, Any]) -> str | None:
    sentence, weight = row.get("sentence"), _weight(row)
    if not isinstance(row.get("doc_id"), str):
        return "doc_id is not a text"
    if type(sentence) is not int or not 0 <= sentence < 2**63:
        return "sentence is not a whole number from 0"
    if row.get("misaligned") not in (0, 1):
        return "misaligned is neither true nor false"
    if type(weight) not in (int, float) or not _LEAST_WEIGHT <= weight <= 1 / _LEAST_WEIGHT:
        return f"weight is not a number from {_LEAST_WEIGHT:g} to {1 / _LEAST_WEIGHT:g}"
    return None


def _weight(row: dict[str, Any]) -> Any:
    weight = row.get("weight")
    return 1.0 if weight is None else weight


def find_scores(dataset: LabelledDataset, column: str, labels: HumanLabels) -> NDArray[np.float32]:
    """Read the scores of the labelled sentences, float32 [n].

    Raises:
        UserError: the dataset lacks a labelled sentence, or has no score for it; names the row of the file.
    """
    wanted: dict[str, list[int]] = {}
    for index, doc_id in enumerate(labels.doc_ids):
        wanted.setdefault(doc_id, []).append(index)
    ids = pa.array(wanted)
    scores = np.full(len(labels.doc_ids), np.nan, dtype=np.float32)
    for batch in dataset.read_batches(["doc_id", column], rows=4096):
        for row in np.flatnonzero(pc.is_in(batch.column("doc_id"), ids).to_numpy(zero_copy_only=False)).tolist():
            values = batch.column(column)[row].as_py() or []
            for index in wanted[batch.column("doc_id")[row].as_py()]:
                if labels.sentences[index] < len(values):
                    scores[index] = values[labels.sentences[index]]
    missing = np.flatnonzero(np.isnan(scores))
    if len(missing):
        raise UserError(
            f"{labels.places[missing[0]]}: {dataset.uri} has no score of {column} for this sentence "
            f"(so for {len(missing):,} of {len(scores):,} rows). Labels are for the sentences of one dataset: take "
            "doc_id and sentence from it."
        )
    return scores


def calibrate(
    labels: HumanLabels, scores: NDArray[np.float32], thresholds: NDArray[np.float32], *, seed: int = 0
) -> Calibration:
    """Compare the scores of labelled sentences with their labels at every threshold.

    Raises:
        UserError: all labels are equal, so nothing can be told apart.
    """
    positive = labels.misaligned
    if positive.all() or not positive.any():
        raise UserError(
            f"The labels call every sentence {'misaligned' if positive.all() else 'aligned'}: precision and "
            "recall need some of both."
        )
    places = np.searchsorted(thresholds, scores, side="left")
    parts = [
        (*_rates(weights, positive, places, len(thresholds)), *_areas(scores, positive, weights))
        for weights in _resampled(labels.weights, np.random.default_rng(seed))
    ]
    precision, recall, false_rate, area, average = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Calibration(
        labelled=len(scores),
        misaligned=int(positive.sum()),
        area=_interval(area),
        average_precision=_interval(average),
        precision=[None if np.isnan(values[0]) else _interval(values) for values in precision.T],
        recall=[_interval(values) for values in recall.T],
        false_positive_rate=[_interval(values) for values in false_rate.T],
    )


def _resampled(weights: Floats, generator: np.random.Generator) -> Iterator[Floats]:
    """Yield the weights of the sample itself and then of bootstrap samples, float64 [some, n]."""
    n = len(weights)
    yield weights[None]
    rows = max(1, _AT_ONCE // n)
    for start in range(0, RESAMPLES, rows):
        yield weights * generator.multinomial(n, np.full(n, 1 / n), size=min(rows, RESAMPLES - start))


def _rates(
    weights: Floats, positive: NDArray[np.bool_], places: NDArray[np.int64], thresholds: int
) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and false positive rate above each threshold, float64 [resamples, thresholds]; NaN for 0/0."""
    true, false = (_above(weights * chosen, places, thresholds) for chosen in (positive, ~positive))
    with np.errstate(invalid="ignore"):
        return (
            true / (true + false),
            true / (weights @ positive)[:, None],
            false / (weights @ ~positive)[:, None],
        )


def _above(weights: Floats, places: NDArray[np.int64], thresholds: int) -> Floats:
    """Total weight of the sentences above each threshold, float64 [resamples, thresholds]."""
    order = np.argsort(places, kind="stable")
    # Sums from the end are exactly 0 where nothing is above.
    sums = np.zeros((len(weights), len(places) + 1))
    sums[:, :-1] = weights[:, order][:, ::-1].cumsum(axis=1)[:, ::-1]
    # A score with place k exceeds the thresholds before k.
    above: Floats = sums[:, np.searchsorted(places[order], np.arange(thresholds), side="right")]
    return above


def _areas(scores: NDArray[np.float32], positive: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Area under the ROC curve and average precision of each row of weights, float64 [resamples]; NaN without a class.

    With true and false positives at every distinct score, highest first, the area is the trapezoid sum over the false
    positives; average precision is the sum of precision times the step in recall.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    firsts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    true, false = (np.add.reduceat((weights * chosen)[:, order], firsts, axis=1) for chosen in (positive, ~positive))
    positives, negatives = true.sum(axis=1), false.sum(axis=1)
    true_sum, false_sum = true.cumsum(axis=1), false.cumsum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (false * (true_sum - true / 2)).sum(axis=1) / (positives * negatives)
        precision = np.nan_to_num(true_sum / (true_sum + false_sum))
        average = (precision * true).sum(axis=1) / positives
    return area, average


def _interval(values: Floats) -> Interval:
    value, *resampled = np.asarray(values, dtype=np.float64)
    usable = np.asarray(resampled)[~np.isnan(resampled)]
    if not len(usable):
        return Interval(float(value))
    low, high = np.quantile(usable, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))
