"""The diversity of samples: entropy of n-grams, distinct n-grams within a sample, and Self-BLEU, all over token ids.

Samples without tokens are left out. Plain NumPy: a few seconds for 4,096 samples of 128 tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training import statistics
from training.runs.report import DiversityFacts, Estimate

ORDERS = (1, 2, 3, 4)
# Every sample is compared with all others, so Self-BLEU rises with their number: a fixed one keeps runs comparable.
COMPARED = 1000

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def measure_diversity(samples: Sequence[Sequence[int]]) -> DiversityFacts | None:
    """Measure the diversity of samples; None if none has a token.

    Args:
        samples: token ids of each sample, in the order in which they were drawn.
    """
    samples = [ids for ids in samples if len(ids)]
    if not samples:
        return None
    counts = [count_ngrams(samples, n) for n in ORDERS]
    compared = samples[:COMPARED]
    bleu = self_bleu_statistics(compared, 5)
    return DiversityFacts(
        entropy=[Estimate.of(entropy(each)) for each in counts],
        distinct=[Estimate.of(mean_distinct(each)) for each in counts],
        self_bleu_4=Estimate.of(self_bleu(bleu, 4)),
        self_bleu_5=Estimate.of(self_bleu(bleu, 5)),
        self_bleu_samples=len(compared),
    )


@dataclass(frozen=True)
class NgramCounts:
    """How often each n-gram occurs in each sample; an entry per pair of which the n-gram occurs in the sample.

    Attributes:
        samples: number of samples.
        sample: int64 [pairs], ascending.
        gram: int64 [pairs], the n-gram, numbered from 0.
        count: int64 [pairs].
    """

    samples: int
    sample: Integers
    gram: Integers
    count: Integers

    @property
    def totals(self) -> Integers:
        """int64 [n-grams], occurrences in all samples."""
        return np.bincount(self.gram, weights=self.count).astype(np.int64)

    def per_sample(self, values: Floats | Integers) -> Floats:
        """Sum values of pairs by sample, float64 [samples]."""
        return np.bincount(self.sample, weights=values, minlength=self.samples).astype(np.float64)


def count_ngrams(samples: Sequence[Sequence[int]], n: int) -> NgramCounts:
    """Count the n-grams within each sample."""
    lengths = np.array([len(ids) for ids in samples], dtype=np.int64)
    flat = np.fromiter((token for ids in samples for token in ids), dtype=np.int64, count=int(lengths.sum()))
    owner = np.repeat(np.arange(len(samples)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat))  # tokens from here to the end of the sample
    _, token = np.unique(flat, return_inverse=True)
    gram = token
    for more in range(1, n):
        # Numbering the shorter n-grams densely keeps the products far below 2**63.
        fits = left[: max(0, len(flat) - more)] > more
        pairs = gram[: len(fits)] * (len(flat) + 1) + token[len(token) - len(fits) :]
        numbered = np.zeros(len(fits), dtype=np.int64)
        numbered[fits] = np.unique(pairs[fits], return_inverse=True)[1]
        gram = numbered
    fits = left[: len(gram)] >= n
    gram, owner = gram[fits], owner[: len(fits)][fits]
    size = int(gram.max()) + 1 if len(gram) else 1
    pair, count = np.unique(owner * size + gram, return_counts=True)
    return NgramCounts(len(samples), pair // size, pair % size, count)


def entropy(counts: NgramCounts) -> statistics.Estimate | None:
    """The entropy of all samples' n-grams in bits, `-sum p log2 p`, with p their relative frequencies.

    It rises with the number of samples, so compare runs with equally many. For the same reason a bootstrap, which
    repeats samples, would place the interval too low; the interval is 1.96 standard errors of the jackknife that leaves
    out one sample at a time (Efron and Stein, The jackknife estimate of variance, Annals of Statistics 9, 1981). None
    without n-grams.

    Source of the figure: Shannon (1948); of its use for samples: Zhang et al. (arXiv 1809.05972), Ent-n.
    """
    totals = counts.totals
    number = int(totals.sum())
    if not number:
        return None
    value = float(_entropy(_x_log_x(totals).sum(), number))
    without = number - counts.per_sample(counts.count)
    if counts.samples < 2 or not without.all():
        return statistics.Estimate(value)
    # Leaving out a sample changes only the terms of its own n-grams.
    of_pair = totals[counts.gram]
    lost = counts.per_sample(_x_log_x(of_pair) - _x_log_x(of_pair - counts.count))
    return _jackknife(value, _entropy(_x_log_x(totals).sum() - lost, without))


def mean_distinct(counts: NgramCounts) -> statistics.Estimate | None:
    """The mean share of distinct n-grams within a sample, with a bootstrap interval over samples.

    It does not depend on the number of samples, and falls when a model repeats itself within a sample (arXiv
    2302.08582, section 4.4). Samples of fewer than n tokens are left out; None if none is left.

    Source of the figure: Li et al. (arXiv 1510.03055), distinct-n, here by sample.
    """
    all_of_them = counts.per_sample(counts.count)
    distinct = counts.per_sample(np.ones(len(counts.count)))
    return statistics.mean(distinct[all_of_them > 0] / all_of_them[all_of_them > 0])


def self_bleu_statistics(samples: Sequence[Sequence[int]], order: int) -> Floats:
    """What corpus BLEU needs of each sample against all others, float64 [samples, 2 * order + 2].

    The columns are, for n = 1 to `order`, the n-grams that match: each n-gram counts at most as often as in the one
    other sample that has it most often; then, for each n, all n-grams; then the length in tokens, and the length of the
    other sample that is closest in length, the shorter of two.
    """
    matches, totals = [], []
    for n in range(1, order + 1):
        counts = count_ngrams(samples, n)
        most = _most_in_another(counts)
        matches.append(counts.per_sample(np.minimum(counts.count, most)))
        totals.append(counts.per_sample(counts.count))
    lengths = np.array([len(ids) for ids in samples], dtype=np.float64)
    closest = np.array([_closest(lengths, index) for index in range(len(lengths))])
    return np.stack([*matches, *totals, lengths, closest], axis=1)


def self_bleu(found: Floats, order: int) -> statistics.Estimate | None:
    """Self-BLEU in [0, 1]: corpus BLEU of the samples, each with all others as references; high if they are alike.

    `BP * exp(mean of log p_n)`, n = 1 to `order`, where p_n is the share of n-grams that match, over all samples, and
    `BP = min(1, exp(1 - closest lengths / lengths))`. A p_n without a match is smoothed as in NIST's mteval and
    sacrebleu ("exp"): the k-th such n counts 2^-k matches. The bootstrap interval is over samples, with the others as
    they are. None with fewer than two samples, or if none has `order` tokens.

    Sources: Papineni et al. (2002), BLEU; Zhu et al. (arXiv 1802.01886), Self-BLEU; Post (arXiv 1804.08771).

    Args:
        found: from `self_bleu_statistics`, for this order or a higher one.
        order: the longest n-grams.
    """
    if len(found) < 2 or not found[:, found.shape[1] // 2 - 1 + order - 1].any():
        return None
    return statistics.bootstrap(len(found), lambda rows: _bleu(statistics.repeats(rows, len(found)) @ found, order))


def _bleu(sums: Floats, order: int) -> Floats:
    highest = sums.shape[-1] // 2 - 1
    matches, totals = sums[..., :order], sums[..., highest : highest + order]
    smoothing = 0.5 ** np.cumsum(matches == 0, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(matches == 0, smoothing, matches) / totals
        brevity = np.minimum(0.0, 1 - sums[..., -1] / sums[..., -2])
        score: Floats = np.exp(brevity + np.log(precisions).mean(axis=-1))
    # As in sacrebleu, nothing in common is 0.
    return np.where((matches == 0).all(axis=-1), 0.0, score)


def _most_in_another(counts: NgramCounts) -> Integers:
    """For each pair, how often the n-gram occurs in the other sample that has it most often, int64 [pairs]."""
    order = np.lexsort((-counts.count, counts.gram))
    gram, count = counts.gram[order], counts.count[order]
    first = np.flatnonzero(np.diff(gram, prepend=-1))
    group = np.cumsum(np.diff(gram, prepend=-1) != 0) - 1
    # The first of a group is compared with the second, if there is one, and all others with the first.
    most = count[first][group]
    sizes = np.diff(np.append(first, len(gram)))
    second = np.zeros(len(first), dtype=np.int64)
    second[sizes > 1] = count[first[sizes > 1] + 1]
    most[first] = second
    found = np.zeros(len(most), dtype=np.int64)
    found[order] = most
    return found


def _closest(lengths: Floats, index: int) -> float:
    others = np.delete(lengths, index)
    if not len(others):
        return float(lengths[index])
    differences = np.abs(others - lengths[index])
    return float(others[differences == differences.min()].min())


def _x_log_x(values: Integers) -> Floats:
    found = values.astype(np.float64)
    return found * np.log2(np.maximum(found, 1))


def _entropy(sum_of_terms: Floats, number: Floats | int) -> Floats:
    # -sum (c / N) log2 (c / N) = log2 N - (1 / N) sum c log2 c
    return np.log2(number) - sum_of_terms / number


def _jackknife(value: float, without_one: Floats) -> statistics.Estimate:
    n = len(without_one)
    error = float(np.sqrt((n - 1) / n * ((without_one - without_one.mean()) ** 2).sum()))
    return statistics.Estimate(
        float(value), max(0.0, float(value) - statistics.Z * error), float(value) + statistics.Z * error
    )
