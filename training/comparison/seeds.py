"""Differences between sets of a few seeds."""

import math
from collections.abc import Sequence
from statistics import fmean, variance

from training.statistics import Estimate, student_t


def difference_over_seeds(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The difference of the means of two sets of seeds, with Welch's interval; none if neither has two seeds.

    Degrees of freedom are Satterthwaite's, rounded down. A single seed is taken to spread like the other set's seeds.

    Source: B. L. Welch, The generalization of Student's problem when several different population variances are
    involved, Biometrika 34 (1947).
    """
    value = fmean(first) - fmean(second)
    several = [each for each in (first, second) if len(each) > 1]
    if not several:
        return Estimate(value)
    spreads = [variance(each if len(each) > 1 else several[0]) / len(each) for each in (first, second)]
    total = sum(spreads)
    if len(several) == 1:
        degrees = len(several[0]) - 1
    elif total == 0:
        degrees = len(first) + len(second) - 2
    else:
        # Divide first: squares of tiny variances would underflow.
        parts = [(spread / total) ** 2 / (len(each) - 1) for spread, each in zip(spreads, several, strict=True)]
        degrees = math.floor(1 / sum(parts) + 1e-9)
    half = student_t(degrees) * math.sqrt(total)
    return Estimate(value, value - half, value + half)
