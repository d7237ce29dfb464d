"""Diversity of samples against values computed by hand, by brute force, and by sacrebleu."""

import math
from collections import Counter

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from training.evaluation.diversity import (
    COMPARED,
    count_ngrams,
    entropy,
    mean_distinct,
    measure_diversity,
    self_bleu,
    self_bleu_statistics,
)

Samples = list[list[int]]


def some(number: int, seed: int = 0, *, vocabulary: int = 12, length: int = 20) -> Samples:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, length, size=number)
    return [(generator.geometric(0.25, size=size) % vocabulary).tolist() for size in sizes]


def grams(ids: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]


def brute_entropy(samples: Samples, n: int) -> float:
    counts = Counter(gram for ids in samples for gram in grams(ids, n))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def test_values_by_hand() -> None:
    # Tokens: 7 four times, 8 and 9 twice each; bigrams: (7, 8) and (7, 9) twice, (8, 7) and (9, 7) once.
    samples = [[7, 8, 7, 9], [7, 9, 7, 8]]
    facts = measure_diversity([*samples, []])
    assert facts is not None
    assert facts.entropy[0] is not None
    assert facts.entropy[0].value == pytest.approx(0.5 * 1 + 2 * 0.25 * 2)
    assert facts.entropy[1] is not None
    assert facts.entropy[1].value == pytest.approx(2 * (1 / 3) * math.log2(3) + 2 * (1 / 6) * math.log2(6))
    assert [each.value for each in facts.distinct if each] == pytest.approx([3 / 4, 1, 1, 1])
    assert facts.self_bleu_samples == 2
    # All 8 tokens match, 4 of 6 bigrams, none of 4 trigrams, which counts as 1/2, and none of 2 4-grams, as 1/4.
    assert facts.self_bleu_4 is not None
    assert facts.self_bleu_4.value == pytest.approx((8 / 8 * 4 / 6 * (1 / 2) / 4 * (1 / 4) / 2) ** (1 / 4))
    # No sample has five tokens.
    assert facts.self_bleu_5 is None


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_entropy_and_distinct_by_brute_force(n: int, seed: int) -> None:
    samples = some(30, seed)
    counts = count_ngrams(samples, n)
    found = entropy(counts)
    assert found is not None
    assert found.value == pytest.approx(brute_entropy(samples, n))
    without = [brute_entropy(samples[:one] + samples[one + 1 :], n) for one in range(30)]
    error = math.sqrt(29 / 30 * sum((each - np.mean(without)) ** 2 for each in without))
    assert found.low == pytest.approx(max(0, found.value - 1.959964 * error))
    assert found.high == pytest.approx(found.value + 1.959964 * error)
    shares = [len(set(grams(ids, n))) / len(grams(ids, n)) for ids in samples if len(ids) >= n]
    distinct = mean_distinct(counts)
    assert distinct is not None
    assert distinct.value == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("order", [4, 5])
@pytest.mark.parametrize(
    "samples",
    [
        some(25),
        some(12, 3, vocabulary=4, length=40),
        some(9, 4, vocabulary=12, length=7),
        [[1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4]],
        [[1, 2, 3, 4, 5, 6]] * 3,
        [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]],
        [[1] * 9, [2, 1, 1, 1, 1, 1]],
    ],
)
def test_self_bleu_is_sacrebleus_on_strings(samples: Samples, order: int) -> None:
    texts = [" ".join(map(str, ids)) for ids in samples]
    others = [texts[:one] + texts[one + 1 :] for one in range(len(texts))]
    bleu = BLEU(tokenize="none", max_ngram_order=order, smooth_method="exp", force=True)
    expected = bleu.corpus_score(texts, [list(each) for each in zip(*others, strict=True)]).score / 100
    found = self_bleu(self_bleu_statistics(samples, 5), order)
    assert found is not None
    assert found.value == pytest.approx(expected, abs=1e-12)
    # Whichever samples are drawn, these values stay the same, and have no interval.
    assert (found.low is None) == (found.high is None) == (found.value in (0, 1))
    if found.low is not None and found.high is not None:
        assert found.low - 1e-9 <= found.value <= found.high + 1e-9


def test_only_so_many_samples_are_compared() -> None:
    samples = some(COMPARED + 200, 2, vocabulary=300)
    found, fewer = measure_diversity(samples), measure_diversity(samples[:COMPARED])
    assert found is not None
    assert fewer is not None
    assert found.self_bleu_samples == COMPARED
    assert found.self_bleu_5 == fewer.self_bleu_5
    assert found.entropy != fewer.entropy


def test_nothing_to_measure() -> None:
    assert measure_diversity([[], []]) is None
    alone = measure_diversity([[1, 2]])
    assert alone is not None
    assert alone.entropy[0] is not None
    assert (alone.entropy[0].value, alone.entropy[0].low) == (1.0, None)
    assert (alone.entropy[2], alone.distinct[2], alone.self_bleu_4) == (None, None, None)
