"""Format numbers for people, with significant digits and intervals."""

import math
from collections.abc import Callable

from training.runs.report import Estimate

_PERCENT = "\N{NO-BREAK SPACE}%"


def number(value: float, digits: int = 4) -> str:
    """Format a number with this many significant digits, without an exponent between 0.0001 and a million."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    text = f"{value:.{digits - 1}e}" if size < -4 or size > 5 else f"{value:,.{max(0, digits - 1 - size)}f}"
    return text.replace("-", "−")


def percent(value: float) -> str:
    """Format a share in per cent, to a tenth."""
    return ("100" if value == 1 else f"{100 * value:.1f}") + _PERCENT


def interval(estimate: Estimate | None, show: Callable[[float], str] = number) -> str:
    """Format an interval as `low–high`, or `low to high` if an end is negative; empty if there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    low, high = show(estimate.low), show(estimate.high)
    return f"{low.removesuffix(_PERCENT)}–{high}" if estimate.low >= 0 else f"{low} to {high}"
