"""Statistics over a few seeds: Student's t intervals, whose width says how little a few seeds know."""

import math
from collections.abc import Sequence
from statistics import fmean, variance

from training.statistics import CONFIDENCE, Estimate


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one value per seed, with a t interval of n - 1 degrees of freedom; no interval for one value."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    half = student_quantile(len(values) - 1) * math.sqrt(variance(values) / len(values))
    return Estimate(mean, mean - half, mean + half)


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
    half = student_quantile(degrees) * math.sqrt(total)
    return Estimate(value, value - half, value + half)


def student_quantile(degrees: int) -> float:
    """The t of Student's distribution with P(|T| < t) = 0.95.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: with theta = atan(t /
    sqrt(degrees)), P is a finite sum of powers of cos(theta) times sin(theta), plus theta for odd degrees.
    """
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, degrees) < CONFIDENCE else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _within(theta: float, degrees: int) -> float:
    odd = degrees % 2
    term = math.sin(theta) * (math.cos(theta) if odd else 1)
    total = 0.0
    # Odd: cos + 2/3 cos^3 + (2 4)/(3 5) cos^5 ...; even: 1 + 1/2 cos^2 + (1 3)/(2 4) cos^4 ...
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= math.cos(theta) ** 2 * (power + 1) / (power + 2)
    return 2 / math.pi * (theta + total) if odd else total
