"""Statistics of samples that are selected by their scores after drawing: best-of-n and rejection. Plain NumPy.

Both are estimated from samples that were drawn once, for every number of draws, without drawing again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training import statistics
from training.statistics import Estimate, Floats


@dataclass(frozen=True)
class Rejection:
    """Sampling until a sample has a score of at most a threshold.

    Attributes:
        acceptance: share of samples that are accepted, with Wilson's interval.
        draws: expected number of samples drawn for one that is kept, the inverse of `acceptance`; None if no sample is
            accepted.
        score: mean score of the accepted samples, with a bootstrap interval; None if there are none.
    """

    acceptance: Estimate
    draws: Estimate | None
    score: Estimate | None

    @property
    def kl(self) -> float | None:
        """KL divergence of the accepted samples from all samples, in nats: -log of the acceptance rate."""
        return None if self.draws is None else math.log(self.draws.value)


def best_of_curve(
    scores: Sequence[float] | Floats, values: Sequence[float] | Floats, most: int | None = None
) -> Floats:
    """Return float64 [most], the expected value of the sample that best-of-n keeps, for n = 1, 2, … `most`.

    Best-of-n draws n samples and keeps the one with the lowest score, any of them if several have it. The estimator
    is the mean over all subsets of n samples, and unbiased for every n. Of the scores themselves it is the expected
    minimum, the mirror image of `statistics.expected_maximum`.

    Args:
        scores: of N samples; decides which sample is kept.
        values: another quantity of the same samples, or the scores themselves.
        most: the largest n; None, and at most, the number of samples.
    """
    scores, values = np.asarray(scores, dtype=np.float64), np.asarray(values, dtype=np.float64)
    total = len(scores)
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    # Any of equal scores is kept equally often.
    shared = (np.bincount(group, values) / sizes)[np.sort(group)] if total else values
    curve = np.empty(total if most is None else min(most, total))
    # Probability that a sample is kept if it is among the n: C(N - i, n - 1) / C(N - 1, n - 1). Products of factors
    # in [0, 1] neither overflow nor cancel; where they underflow, the weight does not matter.
    above = np.arange(total - 1, -1, -1, dtype=np.float64)
    kept = np.ones(total)
    for n in range(1, len(curve) + 1):
        curve[n - 1] = n / total * (kept @ shared)
        kept *= np.maximum(above - (n - 1), 0) / max(1, total - n)
    return curve


def best_of(
    scores: Sequence[float] | Floats,
    sizes: Sequence[int],
    values: Sequence[float] | Floats | None = None,
    *,
    seed: int = 0,
) -> list[Estimate | None]:
    """Return the expected value of the sample that best-of-n keeps, with bootstrap intervals; see `best_of_curve`.

    Args:
        scores: of N samples.
        sizes: each n, at least 1; None is returned for one that exceeds N.
        values: of the same samples; None for their scores.
        seed: of the resampling.
    """
    scores = np.asarray(scores, dtype=np.float64)
    values = scores if values is None else np.asarray(values, dtype=np.float64)
    total = len(scores)
    possible = [n for n in dict.fromkeys(sizes) if n <= total]
    if not possible:
        return [None] * len(sizes)
    distinct, group = np.unique(scores, return_inverse=True)
    survival = [_survival(total, n) for n in possible]

    def of_rows(rows: NDArray[np.int64]) -> Floats:
        # Counting the distinct scores sorts each resample, and lets equal scores share their weight equally.
        places = (group[rows] + len(distinct) * np.arange(len(rows))[:, None]).ravel()
        shape = len(rows), len(distinct)
        counts = np.bincount(places, minlength=math.prod(shape)).reshape(shape)
        sums = np.bincount(places, values[rows].ravel(), minlength=math.prod(shape)).reshape(shape)
        means = np.divide(sums, counts, out=np.zeros(shape), where=counts > 0)
        upto = np.cumsum(counts, axis=-1)
        return np.stack([(-np.diff(table[upto], prepend=1.0) * means).sum(axis=-1) for table in survival], axis=-1)

    found = of_rows(np.arange(total)[None])[0]
    estimates = {n: Estimate(float(value)) for n, value in zip(possible, found, strict=True)}
    if total > 1:
        again = statistics.resampled(total, of_rows, np.random.default_rng(seed))
        for place, n in enumerate(possible):
            estimates[n] = Estimate(estimates[n].value, *statistics.ends(again[:, place]))
    return [estimates.get(n) for n in sizes]


def rejection(scores: Sequence[float] | Floats, threshold: float) -> Rejection | None:
    """Return the figures of drawing until a score is at most `threshold`; None without scores.

    Args:
        scores: of samples that were drawn without selection.
        threshold: the highest score that is accepted.
    """
    scores = np.asarray(scores, dtype=np.float64)
    kept = scores[scores <= threshold]
    acceptance = statistics.share(len(kept), len(scores))
    if acceptance is None:
        return None
    draws = None
    if len(kept) and acceptance.low is not None and acceptance.high is not None:
        draws = Estimate(1 / acceptance.value, 1 / acceptance.high, 1 / acceptance.low)
    return Rejection(acceptance, draws, statistics.mean(kept))


def best_of_kl(n: int) -> float:
    """Return log n - (n - 1) / n, in nats: the most that best-of-n can diverge (KL) from plain sampling.

    It is reached where every sample is unlikely and no two have the same score.

    Source: Beirami et al. (arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def _survival(total: int, of: int) -> Floats:
    """Return float64 [total + 1], the probability that none of the i lowest of `total` samples is among `of` drawn."""
    # C(total - i, of) / C(total, of): a product of factors in [0, 1].
    left = np.arange(total, -1, -1, dtype=np.float64)
    survival = np.ones(total + 1)
    for drawn in range(of):
        survival *= np.maximum(left - drawn, 0) / (total - drawn)
    return survival
