"""Amounts for people: singular and plural, and no positive amount shown as 0."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorers.amounts import format_count, format_duration, format_ended, format_mean_rate, format_size


@pytest.mark.parametrize(("number", "text"), [(0, "0 shards"), (1, "1 shard"), (2000, "2,000 shards")])
def test_counts(number, text):
    assert format_count(number, "shard") == text


def test_samples_end_by_themselves():
    assert [format_ended(each) for each in (1, 2000)] == ["1 ended by itself", "2,000 ended by themselves"]


def test_irregular_plurals():
    assert [format_count(each, "entry", "entries") for each in (1, 2)] == ["1 entry", "2 entries"]


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (999_999, "1 MB"), (25_280_000_000, "25.3 GB"), (3e15, "3 PB")],
)
def test_sizes(bytes_, text):
    assert format_size(bytes_) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.0004, "1 ms"),
        (0.04, "40 ms"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (200, "3 min 20 s"),
        (3000, "50 min"),
        (18_725, "5 h 12 min"),
        (1_080_000, "12.5 days"),
        (27_898_200, "322.9 days"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(1e-6, 1e12))
def test_a_positive_amount_is_never_shown_as_zero(value):
    assert float(format_duration(value).split()[0].replace(",", "")) > 0
    assert float(format_size(max(1, value)).split()[0].replace(",", "")) > 0


def test_rates():
    assert format_mean_rate(3, 10, "records") == "0.3 records/s"
    assert format_mean_rate(20_000, 10, "records") == "2,000 records/s"
