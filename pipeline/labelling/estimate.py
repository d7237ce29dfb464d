"""A ratio measured on slices of a corpus, with the range in which that of the whole corpus lies."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# Quantiles of Student's t distribution at 97.5 %, by degrees of freedom from 1 on; beyond, the last is near enough.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12)


@dataclass(frozen=True)
class Estimate:
    """A value, and the 95 % confidence interval around it."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def to_dict(self) -> dict[str, float]:
        """Plain JSON values."""
        return asdict(self)


def ratio(amounts: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """`sum(amounts) / sum(sizes)` over slices, by the ratio estimator (Cochran, Sampling Techniques, section 6.4).

    Its variance is that of the residuals `amount - ratio * size` between slices. One slice says nothing of it: then the
    range is the value alone. Without any size everything is 0.
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
