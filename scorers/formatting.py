"""Format scores and sentences for tables."""

import math

_MOST_CHARACTERS = 160


def number(value: float | None) -> str:
    """Format a score with three significant digits, or with more just below 1, so that it does not read as 1."""
    if value is None:
        return "–"
    if 0.9 < value < 1:
        return f"{value:.{1 - math.floor(math.log10(1 - value))}f}".rstrip("0")
    return f"{value:.3g}"


def shortened(text: str) -> str:
    """Return a sentence on one line of at most 160 characters, with unprintable characters replaced."""
    line = " ".join(text.split())
    line = "".join(each if each.isprintable() else "�" for each in line)
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1] + "…"
