"""Constraints on samples, and their features: what share of samples shall keep a threshold, or what their mean is."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorers.errors import UserError

Floats = NDArray[np.float64]

_FORM = re.compile(r"\s*(?P<column>[^\s<>=:]+)\s*(?:<=\s*(?P<threshold>[^\s:]+)\s*)?:\s*(?P<moment>\S+)\s*")
_EXAMPLES = "'toxicity<=0.001: 0.999' for a share of the samples, or 'toxicity: 0.01' for a mean"


@dataclass(frozen=True)
class SampleScores:
    """The scores of samples in one column.

    A sample without a sentence, or of Python without a whole line, has nothing that could be misaligned: both are 0.

    Attributes:
        worst: float64 [n], the highest score of a sentence of each sample; NaN if the scorer cannot score it.
        mean: float64 [n], the mean over the sentences, as in `phf evaluate`; NaN likewise.
    """

    worst: Floats
    mean: Floats


@dataclass(frozen=True)
class Constraint:
    """A target for the samples of a model.

    Attributes:
        column: the score.
        threshold: a sample keeps it if every one of its sentences has a score <= threshold, compared as float32; None
            for a target on the mean score.
        moment: the wanted share of samples that keep the threshold, in (0, 1], or the wanted mean score. At a share of
            1 the constraint is pointwise: no other sample shall ever occur.
    """

    column: str
    threshold: float | None
    moment: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Parse `COLUMN<=THRESHOLD: SHARE` or `COLUMN: MEAN`.

        Raises:
            UserError: it has another form, or a number is out of range.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise UserError(f"The constraint {text!r} is not of the form {_EXAMPLES}.")
        threshold = None if found["threshold"] is None else _number(found["threshold"], text, "threshold")
        moment = _number(found["moment"], text, "mean" if threshold is None else "share")
        if threshold is not None and not 0 < moment <= 1:
            raise UserError(f"The constraint {text!r}: the share of samples must be above 0 and at most 1.")
        if threshold is None and moment == 0:
            raise UserError(
                f"The constraint {text!r}: no weights give a mean of 0 while some samples score more. To allow only "
                f"samples that score 0, give '{found['column']}<=0: 1'."
            )
        return cls(found["column"], threshold, moment)

    @property
    def pointwise(self) -> bool:
        """Whether every sample shall keep the threshold."""
        return self.threshold is not None and self.moment == 1

    @property
    def feature_name(self) -> str:
        """The feature, as users write it."""
        return self.column if self.threshold is None else f"{self.column}<={repr(self.threshold).removesuffix('.0')}"

    def __str__(self) -> str:
        return f"{self.feature_name}: {repr(self.moment).removesuffix('.0')}"

    def feature(self, scores: Mapping[str, SampleScores]) -> Floats:
        """Return the feature of samples, float64 [n]: 0 or 1, or the mean score; NaN for a sample without scores."""
        own = scores[self.column]
        if self.threshold is None:
            return own.mean
        # Scores are float32, in which 0.1 is more than in float64.
        kept = own.worst.astype(np.float32) <= np.float32(self.threshold)
        return np.where(np.isnan(own.worst), np.nan, kept.astype(np.float64))


def parse_constraints(texts: Sequence[str]) -> tuple[Constraint, ...]:
    """Parse constraints, and refuse those that cannot hold together whatever the model.

    Raises:
        UserError: there is none, one is malformed, one is given twice, or two contradict each other.
    """
    if not texts:
        raise UserError(f"There is no constraint. Give at least one --constraint, such as {_EXAMPLES}.")
    found = tuple(map(Constraint.parse, texts))
    for number, one in enumerate(found):
        for other in found[:number]:
            if one.feature_name == other.feature_name:
                raise UserError(f"The constraints '{other}' and '{one}' are about the same. Give one of them.")
            if one.column != other.column or one.threshold is None or other.threshold is None:
                continue
            strict, lax = (one, other) if one.threshold < other.threshold else (other, one)
            if strict.moment > lax.moment:
                raise UserError(
                    f"The constraints '{strict}' and '{lax}' contradict each other: whatever keeps the lower threshold "
                    "keeps the higher one too. Raise the share of the second, or leave it out."
                )
    return found


def feature_matrix(constraints: Sequence[Constraint], scores: Mapping[str, SampleScores]) -> Floats:
    """Return the features of samples, float64 [n, k]; NaN where a scorer cannot score the sample."""
    return np.stack([each.feature(scores) for each in constraints], axis=1)


def _number(text: str, constraint: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"The constraint {constraint!r}: the {what} {text!r} is not a number of at least 0.")
    return value
