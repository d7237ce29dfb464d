"""Targets on a corpus: the share of its sentences with a score of at most t, or their mean score."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorers.errors import UserError

_FORM = re.compile(r"\s*(?P<column>[^\s<>=:]+)\s*(?:<=\s*(?P<limit>\S+)\s*)?")
_EXAMPLES = "'toxicity<=0.001: 0.995' for a share of the sentences, or 'toxicity: 0.01' for their mean"


@dataclass(frozen=True)
class Target:
    """A moment that the corpus shall have.

    Attributes:
        column: the score.
        limit: sentences with score <= limit are counted, compared as float32; None for a target on the mean score.
        moment: the share of sentences, in [0, 1], or the mean score. At a share of 1 or 0 the target is a filter: it
            leaves out every other sentence.
    """

    column: str
    limit: float | None
    moment: float

    @property
    def feature(self) -> str:
        """What the moment is of, as users write it."""
        return self.column if self.limit is None else f"{self.column}<={repr(self.limit).removesuffix('.0')}"

    @property
    def is_filter(self) -> bool:
        """Whether every sentence shall be on one side of the limit."""
        return self.limit is not None and self.moment in (0.0, 1.0)

    def of(self, scores: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the feature of sentences with these scores, float32 [n]: 0 or 1, or the score itself."""
        if self.limit is None:
            return scores.astype(np.float32)
        return (scores.astype(np.float32) <= np.float32(self.limit)).astype(np.float32)

    def shown(self, moment: float) -> str:
        """Format a moment of this feature."""
        return f"{moment:.6g}" if self.limit is None else f"{moment:.6g} ({moment:.2%})"


def parse_targets(given: Mapping[str, float]) -> tuple[Target, ...]:
    """Parse the setting `objective.targets`, and refuse targets that no corpus can have.

    Raises:
        UserError: a target has another form, its number is out of range, it is given twice, or two contradict each
            other.
    """
    found = tuple(_parse(text, moment) for text, moment in given.items())
    for number, one in enumerate(found):
        for other in found[:number]:
            _refuse_pair(one, other)
    return found


def _parse(text: str, moment: float) -> Target:
    where = f"objective.targets: {text!r}"
    match = _FORM.fullmatch(text)
    if match is None:
        raise UserError(f"{where} is not of the form {_EXAMPLES}.")
    limit = None
    if match["limit"] is not None:
        try:
            limit = float(match["limit"])
        except ValueError:
            limit = math.nan
        if not (math.isfinite(limit) and limit >= 0):
            raise UserError(f"{where}: the threshold {match['limit']!r} is not a number of at least 0.")
        if not 0 <= moment <= 1:
            raise UserError(f"{where}: {moment:g} is not a share of sentences. Give a number from 0 to 1.")
    elif moment <= 0:
        column = match["column"]
        raise UserError(
            f"{where}: no weights give a mean of {moment:g} while some sentences score more. To keep only sentences "
            f"that score 0, give '{column}<=0: 1'."
        )
    return Target(match["column"], limit, moment)


def _refuse_pair(one: Target, other: Target) -> None:
    if one.feature == other.feature:
        raise UserError(f"objective.targets names {one.feature} twice. Give it once.")
    if one.column != other.column or one.limit is None or other.limit is None:
        return
    strict, lax = (one, other) if one.limit < other.limit else (other, one)
    if strict.moment > lax.moment:
        raise UserError(
            f"objective.targets: {strict.feature}: {strict.moment:g} and {lax.feature}: {lax.moment:g} contradict each "
            "other: whatever is within the lower threshold is within the higher one too. Raise the share of the "
            "second, or leave it out."
        )
