"""Statistics against brute force, and their intervals against repeated draws from known populations."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training import statistics

scores = st.lists(st.floats(0, 10, allow_nan=False, width=32), min_size=1, max_size=9)


@given(scores, st.integers(1, 4))
def test_expected_maximum_is_the_mean_over_all_subsets(values: list[float], of: int) -> None:
    estimate = statistics.expected_maximum(values, of)
    if len(values) < of:
        assert estimate is None
        return
    brute = np.mean([max(subset) for subset in itertools.combinations(values, of)])
    assert estimate is not None
    assert estimate.value == pytest.approx(brute, abs=1e-9)


@given(st.integers(1, 400), st.integers(1, 30))
def test_maximum_weights_are_probabilities(n: int, of: int) -> None:
    if of > n:
        return
    weights = statistics.maximum_weights(n, of)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert (weights[: of - 1] == 0).all()


def test_expected_maximum_of_25_is_unbiased() -> None:
    generator = np.random.default_rng(0)
    truth = 25 / 26  # of 25 uniform numbers
    found = [float(np.sort(generator.random(100)) @ statistics.maximum_weights(100, 25)) for _ in range(2000)]
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / math.sqrt(2000))


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1, allow_nan=False), min_size=2, max_size=50))
def test_intervals_hold_their_estimate(values: list[float]) -> None:
    assume(max(values) - min(values) > 1e-6)
    estimate = statistics.mean(values)
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9


def test_no_values_give_no_estimate_and_one_value_no_interval() -> None:
    assert statistics.mean([]) is None
    assert statistics.share(0, 0) is None
    assert statistics.distinct([[], [1]], 2) is None
    assert statistics.difference([], [1.0]) is None
    assert statistics.ratio(np.zeros(3), np.zeros(3)) is None
    assert statistics.mean([0.5]) == statistics.Estimate(0.5)


def test_mean_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        estimate = statistics.mean(generator.gamma(0.5, size=200))
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_difference_of_equal_populations_straddles_zero() -> None:
    generator = np.random.default_rng(2)
    estimate = statistics.difference(generator.random(400), generator.random(300))
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < 0 < estimate.high
    assert statistics.difference(generator.random(40) + 1, np.zeros(40)).low > 0  # type: ignore[union-attr, operator]


def test_a_few_hits_against_none_are_no_clear_difference() -> None:
    none, hits = np.zeros(64), np.repeat([1.0, 0.0], [4, 60])
    for few in (statistics.difference(hits, none), statistics.paired_difference(hits)):
        assert few is not None
        assert few.value == pytest.approx(4 / 64)
        assert few.low is not None
        assert few.low <= 0
    clear = statistics.difference(np.repeat([1.0, 0.0], [10, 54]), none)
    assert clear is not None
    assert clear.low is not None
    assert clear.low > 0


@pytest.mark.parametrize(("samples", "share"), [(64, 0.03), (256, 0.01)])
def test_equal_models_with_few_hits_seldom_differ_clearly(
    samples: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    generator = np.random.default_rng(4)
    wrong = 0
    for _ in range(200):
        scores = generator.random((2, samples)) * (generator.random((2, samples)) < share)
        found = statistics.difference(*scores)
        wrong += found is not None and found.low is not None and (found.low > 0 or found.high < 0)
    # The plain bootstrap errs in 5 to 9 % of such pairs.
    assert wrong <= 0.05 * 200


def test_equal_observations_have_no_interval() -> None:
    assert statistics.mean([0.0] * 64) == statistics.Estimate(0.0)
    assert statistics.difference([0.0] * 64, [0.0] * 64) == statistics.Estimate(0.0)
    assert statistics.paired_difference([0.0] * 64) == statistics.Estimate(0.0)


@given(st.integers(0, 60), st.integers(1, 60))
def test_share_interval_is_inside_the_unit_interval(hits: int, of: int) -> None:
    estimate = statistics.share(min(hits, of), of)
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


def test_share_is_wilsons_interval() -> None:
    # R: prop.test(10, 100, correct = FALSE)$conf.int
    estimate = statistics.share(10, 100)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((0.05522914, 0.1743657), abs=1e-7)
    none = statistics.share(0, 100)
    assert none is not None
    assert none.low == 0
    assert none.high == pytest.approx(0.0369935, abs=1e-6)


def test_distinct_counts_token_ids_within_samples() -> None:
    samples = [[1, 2, 1, 2], [1, 2], []]
    assert statistics.distinct(samples, 1) == 2 / 6
    assert statistics.distinct(samples, 2) == 2 / 4  # (1,2) (2,1) (1,2) | (1,2); nothing across samples


def test_ratio_is_of_sums_not_of_ratios() -> None:
    estimate = statistics.ratio(np.array([1.0, 100.0]), np.array([1.0, 1000.0]))
    assert estimate is not None
    assert estimate.value == pytest.approx(101 / 1001)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).random(50)
    np.random.seed(0)
    first = statistics.mean(values, seed=1)
    assert first == statistics.mean(values, seed=1)
    assert first != statistics.mean(values, seed=2)


def test_intervals_over_seeds_end_at_the_bounds_of_the_figure() -> None:
    # By hand: t of one degree of freedom is 12.7062, the standard error 0.1.
    free = statistics.mean_over_seeds([0.4, 0.6])
    assert (free.low, free.high) == pytest.approx((0.5 - 1.27062, 0.5 + 1.27062), abs=1e-5)
    share = statistics.mean_over_seeds([0.4, 0.6], statistics.SHARE)
    assert (share.value, share.low, share.high) == (0.5, 0.0, 1.0)
    assert statistics.mean_over_seeds([0.4, 0.6], statistics.NOT_NEGATIVE).high == free.high
    assert statistics.mean_over_seeds([0.4], statistics.SHARE).low is None
