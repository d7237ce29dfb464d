"""`--max-quarantined` is a count or a share; anything ambiguous is refused."""

from fractions import Fraction
from typing import Any

import pytest

from pipeline.commands.summary import percent
from pipeline.quarantine_limit import QuarantineLimit, check_limit


@pytest.mark.parametrize(
    ("value", "normal"),
    [(0, 0), ("5", 5), (" 7 ", 7), ("0.1%", "0.1%"), ("1.5 %", "1.5%"), ("0%", "0%"), ("100%", "100%")],
)
def test_a_count_or_a_share(value: Any, normal: int | str) -> None:
    assert check_limit(value) == normal
    assert QuarantineLimit.parse(normal) == QuarantineLimit.parse(value)


@pytest.mark.parametrize(
    "value", [0.01, 5.0, "0.01", "-1", "-1%", "101%", "%", "", "5 records", "1e3", "٣", True, None]
)
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"write 5 for five records, 0\.1% for one in a thousand"):
        QuarantineLimit.parse(value)


@pytest.mark.parametrize(
    ("limit", "quarantined", "records", "exceeded"),
    [
        (0, 0, 10, False),
        (0, 1, 10, True),
        (5, 5, 10, False),
        ("10%", 1, 10, False),
        ("10%", 2, 10, True),
        ("0.1%", 3, 3_000, False),
        ("0.1%", 3, 2_999, True),
        ("0%", 1, 10**9, True),
        ("100%", 10, 10, False),
        ("50%", 0, 0, False),
        ("50%", 1, 0, True),  # an unreadable input
    ],
)
def test_the_limit_itself_is_allowed(limit: int | str, quarantined: int, records: int, exceeded: bool) -> None:
    assert QuarantineLimit.parse(limit).exceeded(quarantined, records) is exceeded


def test_shares_are_exact() -> None:
    assert QuarantineLimit.parse("0.1%").share == Fraction(1, 1000)


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 10, "0%"), (1, 42, "2.4%"), (3, 10, "30%"), (10, 10, "100%"), (1, 10**6, "0.0001%"), (1, 0, "0%")],
)
def test_a_share_is_shown_with_the_digits_that_matter(part: int, whole: int, shown: str) -> None:
    assert percent(part, whole) == shown
