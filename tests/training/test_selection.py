"""Best-of-n and rejection against brute force over all subsets, and their intervals against repeated draws."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import selection, statistics

# Few distinct scores, so that several samples often share the lowest.
pairs = st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5, allow_nan=False, width=32)), min_size=1, max_size=8)


def kept_by_brute_force(scores: list[float], values: list[float], n: int) -> float:
    """The mean over all subsets of n of the mean value of the samples with the subset's lowest score."""
    found = []
    for subset in itertools.combinations(range(len(scores)), n):
        lowest = min(scores[each] for each in subset)
        found.append(np.mean([values[each] for each in subset if scores[each] == lowest]))
    return float(np.mean(found))


@given(pairs)
def test_best_of_n_is_the_mean_over_all_subsets(drawn: list[tuple[int, float]]) -> None:
    scores, values = [float(score) for score, _ in drawn], [value for _, value in drawn]
    sizes = range(1, len(drawn) + 1)
    expected = [kept_by_brute_force(scores, values, n) for n in sizes]
    assert selection.best_of_curve(scores, values) == pytest.approx(expected, abs=1e-9)
    few = [1, 2, len(drawn), 2, len(drawn) + 1]
    found = selection.best_of(scores, few, values)
    assert [each.value if each else None for each in found] == [
        pytest.approx(expected[n - 1], abs=1e-9) if n <= len(drawn) else None for n in few
    ]


@given(st.lists(st.floats(0, 10, allow_nan=False, width=32), min_size=1, max_size=8))
def test_the_expected_minimum_is_the_mean_over_all_subsets(values: list[float]) -> None:
    curve = selection.best_of_curve(values, values)
    for n, found in enumerate(curve.tolist(), 1):
        brute = np.mean([min(subset) for subset in itertools.combinations(values, n)])
        assert found == pytest.approx(brute, abs=1e-9)
        mirrored = statistics.maximum_weights(len(values), n)[::-1]
        assert found == pytest.approx(np.sort(values) @ mirrored, abs=1e-9)
    assert curve[0] == pytest.approx(np.mean(values))
    assert curve[-1] == pytest.approx(min(values))


def test_the_curve_of_4096_samples_is_exact_to_the_last_size() -> None:
    total = 4096
    scores = np.random.default_rng(0).permutation(np.arange(1.0, total + 1))
    # The expected minimum of n of the numbers 1 to N is (N + 1) / (n + 1).
    exact = (total + 1) / (np.arange(1, total + 1) + 1)
    assert selection.best_of_curve(scores, scores) == pytest.approx(exact, rel=1e-12)
    assert selection.best_of_curve(scores, np.ones(total)) == pytest.approx(np.ones(total), rel=1e-12)
    few = selection.best_of(scores[:1000], [1, 7, 1000], np.ones(1000))
    assert [each.value for each in few if each] == pytest.approx([1, 1, 1], rel=1e-12)


def test_the_intervals_cover_the_truth() -> None:
    generator = np.random.default_rng(1)
    covered = np.zeros(2)
    for _ in range(100):
        noise = generator.random(120)
        # The minimum of 4 uniform numbers is 1/5; a value that is the score plus noise adds the noise's mean of 1/2.
        scores = generator.random(120)
        for place, (values, truth) in enumerate([(scores, 0.2), (scores + noise, 0.7)]):
            (found,) = selection.best_of(scores, [4], values)
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            covered[place] += found.low <= truth <= found.high
    assert (covered >= 86).all()


def test_equal_scores_do_not_narrow_the_interval_of_another_quantity() -> None:
    values = np.random.default_rng(2).normal(size=200)
    (found,), mean = selection.best_of(np.zeros(200), [8], values), statistics.mean(values)
    assert found is not None
    assert mean is not None
    assert (found.value, found.low, found.high) == pytest.approx((mean.value, mean.low, mean.high), abs=0.02)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(-1, 6))
def test_rejection_costs_the_inverse_of_what_it_accepts(scores: list[int], threshold: int) -> None:
    found = selection.rejection([float(each) for each in scores], threshold)
    assert found is not None
    kept = [each for each in scores if each <= threshold]
    assert found.acceptance == statistics.share(len(kept), len(scores))
    if not kept:
        assert (found.draws, found.score, found.kl) == (None, None, None)
        return
    assert found.draws is not None
    assert found.score is not None
    assert found.score.value == pytest.approx(np.mean(kept))
    assert found.draws.value == pytest.approx(len(scores) / len(kept))
    assert found.draws.low <= found.draws.value <= found.draws.high  # type: ignore[operator]
    # KL of the uniform distribution over the kept samples from that over all of them.
    assert found.kl == pytest.approx(sum(math.log(len(scores) / len(kept)) / len(kept) for _ in kept))


def test_rejection_draws_as_often_as_a_simulation() -> None:
    generator = np.random.default_rng(3)
    scores = generator.random(2000)
    found = selection.rejection(scores, 0.2)
    assert found is not None
    assert found.draws is not None
    tries = [next(n for n in itertools.count(1) if generator.choice(scores) <= 0.2) for _ in range(1500)]
    assert np.mean(tries) == pytest.approx(found.draws.value, abs=4 * np.std(tries) / math.sqrt(1500))
    assert selection.rejection([], 0.2) is None


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_bound_of_the_divergence_is_reached_by_distinct_scores(n: int) -> None:
    # Best-of-n with replacement among many equally likely samples: the i-th lowest is kept with probability
    # ((N - i + 1)^n - (N - i)^n) / N^n.
    total = 20_000
    rank = np.arange(total, 0, -1) / total
    kept = rank**n - (rank - 1 / total) ** n
    divergence = float((kept * np.log(np.maximum(kept * total, 1e-300))).sum())
    assert selection.best_of_kl(n) == pytest.approx(divergence, abs=1e-3)
    assert divergence <= selection.best_of_kl(n) + 1e-9
