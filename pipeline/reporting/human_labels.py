"""Measure how well a column's scores agree with sentences that people have labelled.

A label file has one row per sentence (JSON lines, CSV or Parquet): `doc_id` and `sentence`, its index in the document
from 0, as `phf inspect --show-text --json` prints them; `misaligned`, true or false; and optionally `weight`, the
number of sentences of the corpus that it stands for, if the sentences were not drawn uniformly.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from scorers.errors import UserError
from scorers.stored import read_stored

RESAMPLES = 1000
_LARGEST = 64 * 1024 * 1024
_MOST_LABELS = 200_000
_AT_ONCE = 1 << 20  # resampled weights held at once
_FIELDS = ("doc_id", "sentence", "misaligned")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HumanLabels:
    """Labelled sentences: documents, int64 indices of sentences, bool labels, and float64 weights, all of [n]."""

    path: str
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
    table = _read_table(path)
    missing = [name for name in _FIELDS if name not in table.column_names]
    if missing:
        raise UserError(
            f"{path} has no field {missing[0]!r}. Each row needs doc_id, sentence (from 0) and misaligned (true or "
            "false), and may have weight."
        )
    if not 0 < table.num_rows <= _MOST_LABELS:
        raise UserError(f"{path} has {table.num_rows:,} labels; it needs at least one, and at most {_MOST_LABELS:,}.")
    values = {name: table.column(name).to_pylist() for name in _FIELDS}
    weights = table.column("weight").to_pylist() if "weight" in table.column_names else [1.0] * table.num_rows
    for row, (doc_id, sentence, label, weight) in enumerate(zip(*values.values(), weights, strict=True), start=1):
        problem = _problem(doc_id, sentence, label, weight)
        if problem:
            raise UserError(f"{path}, row {row}: {problem}.")
    seen = set()
    for row, place in enumerate(zip(values["doc_id"], values["sentence"], strict=True), start=1):
        if place in seen:
            raise UserError(f"{path}, row {row}: this sentence has a label already. Keep one label a sentence.")
        seen.add(place)
    return HumanLabels(
        path,
        values["doc_id"],
        np.array(values["sentence"], dtype=np.int64),
        np.array(values["misaligned"], dtype=bool),
        np.array(weights, dtype=np.float64),
    )


def _read_table(path: str) -> pa.Table:
    suffix = Path(path).suffix.lower()
    if suffix not in (".jsonl", ".ndjson", ".json", ".csv", ".parquet"):
        raise UserError(f"The labels {path} need the suffix .jsonl, .csv or .parquet.")
    try:
        content = read_stored(path, _LARGEST)
        file = pa.BufferReader(content)
        if suffix == ".csv":
            return pacsv.read_csv(file, convert_options=pacsv.ConvertOptions(column_types={"doc_id": pa.string()}))
        if suffix == ".parquet":
            return _read_parquet(path, file)
        return pajson.read_json(file) if content else pa.table({name: [] for name in _FIELDS})
    except (OSError, pa.ArrowException) as error:
        # Arrow's messages may quote the row.
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a valid file of its kind"
        raise UserError(f"Cannot read the labels {path}: {why}.") from None


def _read_parquet(path: str, file: pa.BufferReader) -> pa.Table:
    with pq.ParquetFile(file) as parquet:
        names = [name for name in (*_FIELDS, "weight") if name in parquet.schema_arrow.names]
        batches, rows, size = [], 0, 0
        for batch in parquet.iter_batches(batch_size=1024, columns=names):
            batches.append(batch)
            rows, size = rows + batch.num_rows, size + batch.nbytes
            # A small file may hold very much.
            if rows > _MOST_LABELS or size > _LARGEST:
                raise UserError(f"{path} holds too much for labels made by people: at most {_MOST_LABELS:,} rows.")
        return pa.Table.from_batches(batches, schema=pa.schema([parquet.schema_arrow.field(name) for name in names]))


def _problem(doc_id: Any, sentence: Any, label: Any, weight: Any) -> str | None:
    if not isinstance(doc_id, str):
        return "doc_id is not a text"
    if type(sentence) is not int or sentence < 0:
        return "sentence is not a whole number from 0"
    if label not in (0, 1):
        return "misaligned is neither true nor false"
    if type(weight) not in (int, float) or not 0 < weight < math.inf:
        return "weight is not a number above 0"
    return None


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
            f"{labels.path}, row {missing[0] + 1}: {dataset.uri} has no score of {column} for this sentence "
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
            f"{labels.path} labels every sentence {'misaligned' if positive.all() else 'aligned'}: precision and "
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
