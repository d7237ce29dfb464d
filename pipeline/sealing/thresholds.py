"""Parse thresholds (`0.5`, `p50`) and resolve them to a number for every score column."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.quantiles import ScoreCounter, exact_quantiles
from scorers.errors import UserError

DEFAULT_SPEC = "p50"

_PERCENTILE = re.compile(r"[pP](\d+(?:\.\d+)?)")

ScorePieces = Callable[[Sequence[str]], Iterable[Mapping[str, NDArray[np.float32]]]]
"""Called with columns; yields the scores of all sentences once, in float32 [any] pieces by column, without nulls."""


def threshold_specs(columns: Sequence[str], given: Mapping[str, float | str]) -> dict[str, str]:
    """Normalise the given thresholds, in the order of `columns`; p50 is the default.

    Raises:
        UserError: a threshold is for a column that is not scored, or is neither a number >= 0 nor a percentile.
    """
    for column in given:
        if column not in columns:
            raise UserError(
                f"There is a threshold for {column!r}, but no scorer fills that column; "
                f"the columns are: {', '.join(columns)}. Drop --threshold {column}=…, or label with --scorer {column}."
            )
    return {column: parse_spec(column, given.get(column, DEFAULT_SPEC)) for column in columns}


def parse_spec(column: str, value: float | str) -> str:
    """Normalise a threshold: `p50`, `p99.9`, or a number such as `0.5`.

    Raises:
        UserError: it is neither a number >= 0 nor a percentile in [0, 100]; names the column.
    """
    text = str(value).strip()
    percentile = _PERCENTILE.fullmatch(text)
    if percentile and Fraction(percentile[1]) <= 100:
        return f"p{percentile[1]}"
    if not percentile:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if 0 <= number <= float(np.finfo(np.float32).max) and not isinstance(value, bool):
            return repr(number + 0.0).removesuffix(".0")
    raise UserError(
        f"The threshold {column}={text} is neither a number >= 0 nor a percentile from p0 to p100. "
        f"Write {column}=0.5 for a score, or {column}=p50 for the half of all sentences with the lowest scores."
    )


def percentile_of(spec: str) -> Fraction | None:
    """The exact fraction in [0, 1] of a percentile; None for a number."""
    percentile = _PERCENTILE.fullmatch(spec)
    return Fraction(percentile[1]) / 100 if percentile else None


def resolve_thresholds(specs: Mapping[str, str], pieces: ScorePieces) -> dict[str, float]:
    """Resolve thresholds to values: round numbers to float32, compute percentiles over all sentences.

    Args:
        specs: by column, from `threshold_specs`.
        pieces: reads scores; called twice if there is a percentile, otherwise never.

    Returns:
        By column a value that is exactly a float32. A percentile over no sentences is 0.
    """
    fractions = {column: fraction for column, spec in specs.items() if (fraction := percentile_of(spec)) is not None}
    counters = {column: ScoreCounter() for column in fractions}
    if fractions:
        for piece in pieces(list(fractions)):
            for column, scores in piece.items():
                counters[column].add(scores)
    values = exact_quantiles(
        counters,
        lambda: pieces(list(fractions)),
        {column: [fraction] for column, fraction in fractions.items()},
    )
    return {
        column: values[column][0] if column in values else float(np.float32(spec)) for column, spec in specs.items()
    }


def parse_flags(flags: Sequence[str]) -> dict[str, float | str]:
    """Parse `--threshold` arguments of the form COLUMN=VALUE into thresholds by column.

    Raises:
        UserError: there is no `=`, a column is named twice, or the value is not a threshold.
    """
    thresholds: dict[str, float | str] = {}
    for flag in flags:
        column, separator, value = flag.partition("=")
        column = column.strip()
        if not separator or not column:
            raise UserError(
                f"--threshold {flag} is not of the form COLUMN=VALUE, such as toxicity=0.5 or toxicity=p50."
            )
        if column in thresholds:
            raise UserError(f"--threshold names the column {column!r} twice; give it once.")
        thresholds[column] = parse_spec(column, value)
    return thresholds
