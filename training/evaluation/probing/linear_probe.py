"""A logistic probe: is a label linearly readable in features? Cross-validated, so that no document is on both sides."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training import statistics

# Inverse strength of the L2 penalty on standardised features, for each of their D dimensions.
_STRENGTH = 1.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Probed:
    """Decision values of probes that were fitted on other documents.

    Attributes:
        scores: float64 [layers, n], higher for a label of true.
        chosen: int64 [folds], the place of the layer that was best on the other folds.
        best: float64 [n], the scores of the chosen layers.
    """

    scores: Floats
    chosen: NDArray[np.int64]
    best: Floats


def cross_validate(
    features: NDArray[np.float32],
    labels: NDArray[np.bool_],
    folds: NDArray[np.int64],
    progress: Callable[[int, int], None] | None = None,
) -> Probed:
    """Fit a probe for each fold on the others, at each layer, and choose a layer for it without looking at the fold.

    The layer of a fold is the one whose probes, fitted on all folds but that and one more, are best on that one more.

    Args:
        features: float32 [layers, n, D].
        labels: bool [n].
        folds: int64 [n], from 0; at least three, each with both labels.
        progress: called with the layers done and the total.
    """
    number = int(folds.max()) + 1
    scores = np.zeros((len(features), len(labels)))
    others = np.zeros((number, len(features)))
    for layer, values in enumerate(features):
        for fold in range(number):
            inside = folds == fold
            scores[layer, inside] = _fit(values, labels, ~inside)(values[inside])
        # The probe without two folds chooses for each of them by the other.
        inner = np.zeros((number, len(labels)))
        for one, other in itertools.combinations(range(number), 2):
            inside = (folds == one) | (folds == other)
            predict = _fit(values, labels, ~inside)
            for outside, measured in ((one, other), (other, one)):
                rows = folds == measured
                inner[outside, rows] = predict(values[rows])
        for fold in range(number):
            rows = folds != fold
            others[fold, layer] = area(inner[fold, rows], labels[rows], folds[rows])
        if progress is not None:
            progress(layer + 1, len(features))
    chosen = others.argmax(axis=1)
    return Probed(scores, chosen, scores[chosen[folds], np.arange(len(labels))])


def area(scores: Floats, labels: NDArray[np.bool_], folds: NDArray[np.int64]) -> float:
    """The area under the ROC curve over pairs of the same fold; scores of different probes have no common scale.

    Args:
        scores: float64 [n].
        labels: bool [n].
        folds: int64 [n].
    """
    right, pairs = _pairs(scores, labels, folds, np.ones((1, len(scores))))
    return float(right[0] / pairs[0])


def area_estimate(
    scores: Floats, labels: NDArray[np.bool_], folds: NDArray[np.int64], texts: NDArray[np.int64], *, seed: int = 0
) -> statistics.Estimate:
    """`area` with a bootstrap interval over documents; the probes stay as they are.

    Args:
        scores: float64 [n].
        labels: bool [n].
        folds: int64 [n].
        texts: int64 [n], the document of each, from 0 without gaps.
        seed: of the resampling.
    """
    number = int(texts.max()) + 1

    def of_rows(rows: NDArray[np.int64]) -> Floats:
        found = [
            _pairs(scores, labels, folds, statistics.repeats(part, number)[:, texts].astype(np.float64))
            for part in np.array_split(rows, -(-len(rows) * len(texts) // _VALUES_AT_ONCE))
        ]
        right, pairs = (np.concatenate(each) for each in zip(*found, strict=True))
        quotient: Floats = np.divide(right, pairs, out=np.full_like(right, np.nan), where=pairs > 0)
        return quotient

    return statistics.bootstrap(number, of_rows, seed=seed)


_VALUES_AT_ONCE = 1 << 20


def _pairs(
    scores: Floats, labels: NDArray[np.bool_], folds: NDArray[np.int64], weights: Floats
) -> tuple[Floats, Floats]:
    """Count the pairs of a true and a false label in one fold that are in the right order, ties half, and all pairs.

    Args:
        scores: float64 [n].
        labels: bool [n].
        folds: int64 [n].
        weights: float64 [resamples, n], how often each is there.

    Returns:
        Both float64 [resamples].
    """
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        rows = rows[np.argsort(scores[rows], kind="stable")]
        ordered, true = scores[rows], labels[rows]
        # below[:, i]: weight of the false labels before place i.
        below = np.zeros((len(weights), len(rows) + 1))
        np.cumsum(np.where(true, 0.0, weights[:, rows]), axis=1, out=below[:, 1:])
        low, high = (np.searchsorted(ordered, ordered[true], side=side) for side in ("left", "right"))
        of_true = weights[:, rows[true]]
        right += (of_true * (below[:, low] + below[:, high])).sum(axis=1) / 2
        pairs += of_true.sum(axis=1) * below[:, -1]
    return right, pairs


def _fit(
    features: NDArray[np.float32], labels: NDArray[np.bool_], rows: NDArray[np.bool_]
) -> Callable[[NDArray[np.float32]], Floats]:
    """Fit a logistic regression on some rows of standardised features; return its decision function."""
    from sklearn.linear_model import LogisticRegression

    chosen = features[rows].astype(np.float64)
    mean, spread = chosen.mean(axis=0), chosen.std(axis=0)
    spread[spread == 0] = 1
    model = LogisticRegression(C=_STRENGTH / features.shape[1], max_iter=1000)
    model.fit((chosen - mean) / spread, labels[rows])

    def decide(values: NDArray[np.float32]) -> Floats:
        found: Floats = model.decision_function((values.astype(np.float64) - mean) / spread)
        return found

    return decide
