"""What the figures share: sizes, ticks, and the two ends of an interval."""

from typing import Any

from training.evaluation.report import Estimate

WIDE, NARROW = 7.6, 4.0  # inches


def ends(estimate: Estimate) -> tuple[float, float]:
    """Both ends of the interval; the value itself where there is none."""
    low = estimate.value if estimate.low is None else min(estimate.low, estimate.value)
    high = estimate.value if estimate.high is None else max(estimate.high, estimate.value)
    return low, high


def reach(estimate: Estimate) -> Any:
    """What `Axes.errorbar` takes: the lengths of the interval below and above the value."""
    low, high = ends(estimate)
    return [[estimate.value - low], [high - estimate.value]]


def tick(value: float, _: int | None = None) -> str:
    """A number without superfluous zeros, with a true minus sign."""
    return f"{value:.6g}".replace("-", "−")


def percent_tick(value: float, _: int | None = None) -> str:
    """A share in per cent."""
    return f"{100 * value:.4g} %"


def tokens_tick(value: float, _: int | None = None) -> str:
    """A number of tokens in thousands, millions or billions."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
