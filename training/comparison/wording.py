"""Put figures into sentences."""

from collections.abc import Sequence

from training import statistics
from training.evaluation.format_figures import number
from training.runs.report import Estimate


def shown(estimate: statistics.Estimate | Estimate | None) -> str:
    """A figure with its interval: `0.31 (0.29 to 0.33)`."""
    if estimate is None:
        return "–"
    return number(estimate.value, 3) + _ends(estimate)


def signed(estimate: statistics.Estimate | Estimate) -> str:
    """A difference with its sign and its interval."""
    return signed_number(estimate.value) + _ends(estimate)


def signed_number(value: float) -> str:
    """Format a number with its sign and three digits."""
    return ("+" if value > 0 else "−" if value < 0 else "") + number(abs(value), 3)


def listed(names: Sequence[str], word: str = "and") -> str:
    """Names with commas, and a word before the last."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def duration(seconds: float) -> str:
    """Format seconds in the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _ends(estimate: statistics.Estimate | Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({number(estimate.low, 3)} to {number(estimate.high, 3)})"
