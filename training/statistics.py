"""Statistics of samples and their scores, with confidence intervals where possible."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95
RESAMPLES = 2000
# The largest figure that reports hold. No score or cost comes near it, and sums and plots of larger ones overflow.
LARGEST = 1e100
Z = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
_CHUNK = 4_000_000  # resampled values held at once

Floats = NDArray[np.float64]

Bounds = tuple[float, float]
"""The least and the most that a figure can be."""
UNBOUNDED: Bounds = (-math.inf, math.inf)
NOT_NEGATIVE: Bounds = (0.0, math.inf)
SHARE: Bounds = (0.0, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; the bounds are None if there are too few values."""

    value: float
    low: float | None = None
    high: float | None = None


def mean(values: Sequence[float] | Floats, *, seed: int = 0) -> Estimate | None:
    """Return the mean with a bootstrap interval; None without values."""
    data = np.asarray(values, dtype=np.float64)
    return bootstrap(len(data), lambda rows: data[rows].mean(axis=-1), seed=seed) if len(data) else None


def mean_over_seeds(values: Sequence[float], bounds: Bounds = UNBOUNDED) -> Estimate:
    """Return the mean of one value per seed, with a t interval of n - 1 degrees of freedom; none for one value.

    The width of the interval says how little a few seeds know; it ends at the bounds of the figure.
    """
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    half = student_t(len(values) - 1) * math.sqrt(variance(values) / len(values))
    return Estimate(mean, max(bounds[0], mean - half), min(bounds[1], mean + half))


def student_t(degrees: int) -> float:
    """Return the t of Student's distribution with P(|T| < t) = 0.95."""
    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def expected_maximum(values: Sequence[float] | Floats, of: int = 25, *, seed: int = 0) -> Estimate | None:
    """Return the expected maximum of `of` values drawn without replacement, with a bootstrap interval.

    The unbiased estimator: among all C(n, of) subsets of that size, the i-th smallest of n values is the maximum of
    C(i-1, of-1). None with fewer than `of` values.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < of:
        return None
    weights = maximum_weights(len(data), of)
    return bootstrap(len(data), lambda rows: np.sort(data[rows], axis=-1) @ weights, seed=seed)


def maximum_weights(n: int, of: int) -> Floats:
    """Return float64 [n], the probability that the i-th smallest of n values is the maximum of a random `of`-subset."""
    # w_n = of / n, and w_i / w_(i+1) = (i - of + 1) / i with i counted from 1.
    weights = np.zeros(n)
    weights[n - 1] = of / n
    for i in range(n - 1, of - 1, -1):
        weights[i - 1] = weights[i] * (i - of + 1) / i
    return weights


def ratio(numerators: Floats, denominators: Floats, *, seed: int = 0) -> Estimate | None:
    """Return the ratio of the sums, with a bootstrap interval over the pairs; None if the denominators are all 0."""
    if not len(denominators) or denominators.sum() == 0:
        return None

    def of_rows(rows: NDArray[np.int64]) -> Floats:
        below = denominators[rows].sum(axis=-1)
        above = numerators[rows].sum(axis=-1)
        quotient: Floats = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
        return quotient

    return bootstrap(len(numerators), of_rows, seed=seed)


def perplexity(nats: Floats, tokens: NDArray[np.int64], *, seed: int = 0) -> Estimate | None:
    """Return exp of the nats per token, with a bootstrap interval over texts; None without tokens.

    Args:
        nats: float64 [n], -log p of each text.
        tokens: int64 [n], the number of tokens that each is over.
        seed: of the resampling.
    """
    cost = ratio(nats, tokens.astype(np.float64), seed=seed)
    if cost is None:
        return None
    low, high = (None if each is None else exp_of_nats(each) for each in (cost.low, cost.high))
    return Estimate(exp_of_nats(cost.value), low, high)


def exp_of_nats(nats_per_token: float) -> float:
    """Return the perplexity of nats per token, at most `LARGEST`: that of a diverged model may overflow."""
    return min(LARGEST, math.exp(min(nats_per_token, 700.0)))


def share(hits: int, of: int) -> Estimate | None:
    """Return `hits / of` with Wilson's score interval, which stays in [0, 1], also at 0 hits; None if `of` is 0.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if of == 0:
        return None
    p = hits / of
    scale = 1 + Z**2 / of
    centre = (p + Z**2 / (2 * of)) / scale
    half = Z * math.sqrt(p * (1 - p) / of + Z**2 / (4 * of**2)) / scale
    # At 0 and at `of` hits, one bound equals the share; rounding must not put it on the wrong side.
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def distinct(samples: Sequence[Sequence[int]], n: int) -> float | None:
    """Return the share of distinct n-grams of token ids among all n-grams of all samples; None if there are none.

    It falls with the number of samples, so compare runs with equally many. Source: Li et al. (2016), distinct-n.
    """
    grams = [gram for ids in samples for gram in zip(*(ids[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else None


def difference(first: Sequence[float] | Floats, second: Sequence[float] | Floats, *, seed: int = 0) -> Estimate | None:
    """Return the difference in means of two independent samples, with a bootstrap interval; None if one is empty.

    Where most scores are 0, a few others exclude 0 too often: 4 of 64 scores against none would. So the interval counts
    two more values in each sample, as for shares: the least of all values, and the mean of those above it. Source: A.
    Agresti and B. Caffo, Simple and effective confidence intervals for proportions and differences of proportions, The
    American Statistician 54 (2000).
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not len(a) or not len(b):
        return None
    value = float(a.mean() - b.mean())
    every = np.concatenate([a, b])
    above = every[every > every.min()]
    if min(len(a), len(b)) < 2 or not len(above):
        return Estimate(value)
    more = [every.min(), above.mean()]
    first_means, second_means = _means(np.append(a, more), seed), _means(np.append(b, more), seed + 1)
    return _around(value, first_means - second_means)


def paired_difference(differences: Sequence[float] | Floats, *, seed: int = 0) -> Estimate | None:
    """Return the mean of the differences of pairs, with a bootstrap interval; None without pairs.

    As in `difference`, two more values keep a few differences among many zeros from excluding 0: the mean of what
    differs, up and down.
    """
    data = np.asarray(differences, dtype=np.float64)
    if not len(data):
        return None
    value, sizes = float(data.mean()), np.abs(data[data != 0])
    if len(data) < 2 or not len(sizes):
        return Estimate(value)
    return _around(value, _means(np.append(data, [sizes.mean(), -sizes.mean()]), seed))


def _means(data: Floats, seed: int) -> Floats:
    return resampled(len(data), lambda rows: data[rows].mean(axis=-1), np.random.default_rng(seed))


def _around(value: float, resamples: Floats) -> Estimate:
    low, high = ends(resamples)
    return Estimate(value, min(low, value), max(high, value))


def bootstrap(n: int, statistic: Callable[[NDArray[np.int64]], Floats], *, seed: int = 0) -> Estimate:
    """Return a statistic of n observations and the percentile interval of its bootstrap distribution.

    There is no interval for a single observation, nor where all resamples agree: equal observations do not show how
    much others would differ.

    Args:
        n: observations, at least 1.
        statistic: maps int64 [..., n], indices of observations, to float64 [...].
        seed: of the resampling, which uses its own generator.
    """
    value = float(statistic(np.arange(n)[None])[0])
    if n < 2:
        return Estimate(value)
    low, high = ends(resampled(n, statistic, np.random.default_rng(seed)))
    return Estimate(value, low, high) if low < high else Estimate(value)


def resampled(n: int, statistic: Callable[[NDArray[np.int64]], Floats], generator: np.random.Generator) -> Floats:
    """Return a statistic of each of `RESAMPLES` resamples of n observations, float64 [RESAMPLES, ...].

    Args:
        n: observations.
        statistic: maps int64 [rows, n], indices of observations, to float64 [rows, ...].
        generator: draws the resamples.
    """
    rows = max(1, _CHUNK // n)
    parts = [
        statistic(generator.integers(0, n, size=(min(rows, RESAMPLES - start), n)))
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(parts)


def repeats(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return how often each of n observations is among resampled ones: int64 [resamples, n] from [resamples, any]."""
    resamples = np.arange(len(rows))[:, None] * n
    return np.bincount((rows + resamples).ravel(), minlength=len(rows) * n).reshape(len(rows), n)


def ends(values: Floats) -> tuple[float, float]:
    """Return the ends of the percentile interval of resampled values, float64 [n]; NaN is left out."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
