"""The solver of moments against an alphabet of 8 tokens and length 3, enumerated exactly."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.lambdas import UnreachableMomentsError, solve_lambdas

TEXTS = np.array(list(product(range(8), repeat=3)))
# How often token 0 occurs, whether token 1 does, and the mean of the tokens: a count, a constraint and a score.
FEATURES = np.stack([(TEXTS == 0).sum(1), (TEXTS == 1).any(1), TEXTS.mean(1) / 7], axis=1).astype(np.float64)


def prior(seed: int) -> np.ndarray:
    """Token probabilities of a fixed model that prefers some tokens, [512]."""
    logits = np.random.default_rng(seed).normal(size=8)
    tokens = np.exp(logits) / np.exp(logits).sum()
    return np.asarray(tokens[TEXTS].prod(1))


def tilted(weights: np.ndarray, lambdas: np.ndarray) -> np.ndarray:
    unnormalised = weights * np.exp(FEATURES @ lambdas)
    return np.asarray(unnormalised / unnormalised.sum())


@given(
    st.integers(0, 100),
    st.lists(st.floats(-6, 6, allow_nan=False), min_size=3, max_size=3).map(np.array),
)
def test_finds_the_lambdas_that_made_the_moments(seed: int, lambdas: np.ndarray) -> None:
    texts = prior(seed)
    moments = tilted(texts, lambdas) @ FEATURES

    found = solve_lambdas(FEATURES, moments, np.log(texts))

    np.testing.assert_allclose(found.values, lambdas, rtol=0, atol=1e-9)
    assert np.exp(found.log_normaliser) == pytest.approx(texts @ np.exp(FEATURES @ lambdas), rel=1e-9)
    weights = texts * np.exp(FEATURES @ lambdas)
    assert found.effective_size == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-8)
    assert found.steps < 30


@pytest.mark.parametrize("rows", [1, 30, 999])
@pytest.mark.parametrize("share", [1e-9, 0.3, 0.999, 1 - 1e-9])
def test_a_share_has_a_closed_form(rows: int, share: float) -> None:
    # One binary feature: lambda is the difference of the log-odds.
    phi = np.arange(1000)[:, None] < rows

    found = solve_lambdas(phi, [share])

    now = rows / 1000
    assert found.values[0] == pytest.approx(np.log(share / (1 - share)) - np.log(now / (1 - now)), abs=1e-6)
    others = 1000 - rows
    assert found.effective_size == pytest.approx(1 / (share**2 / rows + (1 - share) ** 2 / others), rel=1e-6)


def test_counts_stand_for_equal_rows() -> None:
    repeated = np.repeat(FEATURES[:60], np.arange(60) + 1, axis=0)
    moments = FEATURES[:60].mean(0) * 0.9 + 0.02

    once = solve_lambdas(FEATURES[:60], moments, counts=np.arange(60) + 1)
    each = solve_lambdas(repeated, moments)

    np.testing.assert_allclose(once.values, each.values, rtol=0, atol=1e-9)
    assert once.effective_size == pytest.approx(each.effective_size, rel=1e-9)
    assert once.log_normaliser == pytest.approx(each.log_normaliser, abs=1e-9)


def test_rows_without_weight_do_not_count() -> None:
    weights = np.where(FEATURES[:, 1] > 0, -np.inf, 0.0)

    found = solve_lambdas(FEATURES[:, :1], [0.5], weights)

    kept = FEATURES[FEATURES[:, 1] == 0, :1]
    np.testing.assert_allclose(found.values, solve_lambdas(kept, [0.5]).values, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="no row"):
        solve_lambdas(FEATURES, [0, 0, 0], np.full(512, -np.inf))


def test_rare_features_and_small_scores_are_solved() -> None:
    scores = np.random.default_rng(0).exponential(1e-4, size=(20_000, 1)) ** 1.5
    rare = np.arange(20_000)[:, None] < 3
    phi = np.concatenate([scores, rare], axis=1)
    wanted = np.array([scores.mean() / 100, 0.01])

    found = solve_lambdas(phi.astype(np.float64), wanted)

    weights = np.exp(phi @ found.values)
    np.testing.assert_allclose(weights @ phi / weights.sum(), wanted, rtol=1e-8)


def test_dependent_and_constant_features_do_no_harm() -> None:
    phi = np.concatenate([FEATURES, FEATURES[:, :1], np.ones((512, 1))], axis=1)
    moments = [0.2, 0.5, 0.4, 0.2, 1.0]

    found = solve_lambdas(phi, moments)

    weights = np.exp(phi @ found.values)
    np.testing.assert_allclose(weights @ phi / weights.sum(), moments, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("moments", "index"), [([0.2, 1.0, 0.5], 1), ([3.5, 0.5, 0.5], 0), ([0.2, 0.5, -0.1], 2)])
def test_a_moment_out_of_range_is_refused_with_the_range(moments: list[float], index: int) -> None:
    with pytest.raises(UnreachableMomentsError) as caught:
        solve_lambdas(FEATURES, moments)

    assert caught.value.index == index
    assert (caught.value.low.tolist(), caught.value.high.tolist()) == ([0, 0, 0], [3, 1, 1])


@pytest.mark.parametrize("second", [0.2, 0.5999])
def test_contradicting_moments_are_refused_with_the_nearest(second: float) -> None:
    # What is below 10 is below 20 too: the second share cannot be less than the first.
    place = np.arange(100)
    phi = np.stack([place < 10, place < 20], axis=1)

    with pytest.raises(UnreachableMomentsError) as caught:
        solve_lambdas(phi, [0.6, second])

    assert caught.value.index is None
    # Equal shares between the two, each error relative to the larger distance from an end of the range.
    ends = np.array([0.6, max(second, 1 - second)])
    middle = np.average([0.6, second], weights=ends**-2.0)
    np.testing.assert_allclose(caught.value.nearest, [middle, middle], atol=1e-3)


def test_moments_at_the_edge_of_what_is_reachable_are_met_in_the_limit() -> None:
    place = np.arange(100)
    phi = np.stack([place < 10, place < 20], axis=1)

    found = solve_lambdas(phi, [0.6, 0.6])

    weights = np.exp(phi @ found.values)
    np.testing.assert_allclose(weights @ phi / weights.sum(), [0.6, 0.6], atol=1e-9)
