"""Estimate a ratio for a whole corpus from slices of it, with a confidence interval."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# 97.5 % quantiles of Student's t distribution by degrees of freedom, from 1 on; the last serves for all larger ones.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Estimate":
        """The estimate scaled by a factor."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def to_dict(self) -> dict[str, float]:
        """The estimate as plain JSON values."""
        return asdict(self)


def ratio(amounts: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """`sum(amounts) / sum(sizes)` over slices, by the ratio estimator (Cochran, Sampling Techniques, section 6.4).

    The variance is that of the residuals `amount - ratio * size` between slices. With a single slice the interval is
    the value alone; if all sizes are 0, so is the estimate.
    """
    total = sum(sizes)
    if not total:
        return Estimate(0.0, 0.0, 0.0)
    value = sum(amounts) / total
    count = len(amounts)
    if count < 2:
        return Estimate(value, value, value)
    residuals = sum((amount - value * size) ** 2 for amount, size in zip(amounts, sizes, strict=True))
    error = math.sqrt(residuals / (count - 1) * count) / total
    margin = _T[min(count - 1, len(_T)) - 1] * error
    return Estimate(value, max(value - margin, 0.0), value + margin)
