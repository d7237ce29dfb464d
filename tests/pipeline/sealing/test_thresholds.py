from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.dataset.quantiles import ScoreCounter, exact_quantiles
from pipeline.sealing.thresholds import parse_spec, percentile_of, resolve_thresholds, threshold_specs
from scorers.errors import UserError

scores_arrays = npst.arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.one_of(
        st.floats(0, np.finfo(np.float32).max, width=32, allow_subnormal=True),
        st.sampled_from([0.0, -0.0, 1.0, 1e-45, 0.1, 0.10000000149011612]),
    ),
)


def quantiles(pieces, fractions):
    counter = ScoreCounter()
    for piece in pieces:
        counter.add(piece)
    return exact_quantiles({"c": counter}, lambda: [{"c": piece} for piece in pieces], {"c": fractions})["c"]


@given(scores_arrays, st.lists(st.integers(0, 64), min_size=1, max_size=5), st.data())
def test_counting_finds_numpys_inverted_cdf(scores, sixty_fourths, data):
    # Fractions with a power of two as denominator give exact ranks in numpy's floating point too.
    cut = data.draw(st.integers(0, len(scores)))
    found = quantiles([scores[cut:], scores[:cut]], [Fraction(k, 64) for k in sixty_fourths])
    expected = np.quantile(scores, [k / 64 for k in sixty_fourths], method="inverted_cdf")
    np.testing.assert_array_equal(np.float32(found), expected)


@given(scores_arrays, st.decimals(0, 100, places=2))
def test_a_percentile_is_the_smallest_score_that_enough_scores_do_not_exceed(scores, percent):
    fraction = Fraction(percent) / 100
    (found,) = quantiles([scores], [fraction])
    ordered = np.sort(scores + np.float32(0))
    share = lambda value: Fraction(int((scores <= value).sum()), len(scores))  # noqa: E731
    assert found in ordered
    assert share(np.float32(found)) >= fraction
    smaller = ordered[ordered < np.float32(found)]
    assert not len(smaller) or share(smaller[-1]) < fraction


def test_a_rank_is_exact_where_floating_point_is_not():
    # 100 * 0.07 is 7.000000000000001 in floating point, which would select the eighth score.
    assert quantiles([np.arange(100, dtype=np.float32)], [percentile_of("p7")]) == [6.0]


def test_negative_zero_counts_as_zero():
    assert quantiles([np.float32([-0.0, -0.0, 1.0])], [Fraction(1, 2)]) == [0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e-30])
def test_invalid_scores_are_not_counted(bad):
    with pytest.raises(ValueError, match="negative, NaN or infinite"):
        ScoreCounter().add(np.float32([0.5, bad]))


def test_scores_that_change_between_the_passes_are_noticed():
    counter = ScoreCounter()
    counter.add(np.float32([0.25, 0.5]))
    with pytest.raises(ValueError, match="second pass"):
        exact_quantiles({"c": counter}, lambda: [{"c": np.float32([0.25])}], {"c": [Fraction(1)]})


def test_a_percentile_of_no_scores_is_zero_and_needs_no_second_pass():
    def second_pass():
        raise AssertionError("there is nothing to read")

    assert exact_quantiles({"c": ScoreCounter()}, second_pass, {"c": [Fraction(1, 2)]}) == {"c": [0.0]}


@pytest.mark.parametrize(
    ("given_value", "spec"),
    [
        (0.5, "0.5"),
        (0, "0"),
        ("0", "0"),
        ("1e-4", "0.0001"),
        ("p50", "p50"),
        ("P99.9", "p99.9"),
        (" p0 ", "p0"),
        (-0.0, "0"),
    ],
)
def test_a_threshold_has_one_normal_form(given_value, spec):
    assert parse_spec("toxicity", given_value) == spec


@pytest.mark.parametrize("bad", ["p101", "p-1", "50%", "p", "", "nan", "inf", -0.5, "1e99", True, "pfifty"])
def test_the_error_for_an_invalid_threshold_names_column_and_valid_forms(bad):
    with pytest.raises(UserError, match=r"threshold toxicity=.*toxicity=0\.5 .* toxicity=p50") as error:
        parse_spec("toxicity", bad)
    assert error.value.exit_code == 2


def test_a_threshold_for_a_column_that_was_not_scored_is_refused():
    with pytest.raises(UserError, match=r"threshold for 'pii'.*the columns are: toxicity.*--scorer pii"):
        threshold_specs(["toxicity"], {"pii": 0})


def test_columns_without_a_threshold_take_the_median():
    assert threshold_specs(["toxicity", "pii"], {"pii": 0}) == {"toxicity": "p50", "pii": "0"}


def test_numbers_become_float32_and_read_no_scores():
    def pieces(columns):
        raise AssertionError("there is nothing to count")

    values = resolve_thresholds({"toxicity": "0.1"}, pieces)
    assert values == {"toxicity": float(np.float32(0.1))}
    # So a score of 0.1 is aligned whether a reader compares in single or in double precision.
    assert float(np.float32(0.1)) <= values["toxicity"]


def test_percentiles_are_counted_by_column_in_two_passes():
    asked = []

    def pieces(columns):
        asked.append(list(columns))
        return [{"a": np.float32([1, 2]), "b": np.float32([5])}, {"a": np.float32([3, 4]), "b": np.float32([])}]

    assert resolve_thresholds({"a": "p50", "n": "7", "b": "p100"}, pieces) == {"a": 2.0, "n": 7.0, "b": 5.0}
    assert asked == [["a", "b"], ["a", "b"]]
