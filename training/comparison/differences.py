"""Differences between groups: over seeds where there are several, else over samples and documents."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training import statistics
from training.comparison import groups
from training.comparison.groups import Figure, Group
from training.comparison.load import Comparison
from training.comparison.seeds import difference_over_seeds
from training.runs.report import Estimate
from training.statistics import mean_over_seeds

Verdict = Literal["lower", "higher", "unclear"]


@dataclass(frozen=True)
class Difference:
    """The difference of a group from another; `estimate` is the group's figure minus the other's."""

    group: Group
    estimate: statistics.Estimate

    @property
    def verdict(self) -> Verdict:
        """`lower` or `higher` if the 95 % interval of the difference excludes 0, else `unclear`."""
        if self.estimate.high is not None and self.estimate.high < 0:
            return "lower"
        if self.estimate.low is not None and self.estimate.low > 0:
            return "higher"
        return "unclear"


def misalignment_difference(group: Group, other: Group) -> Difference | None:
    """Mean misalignment of a group minus that of the other; None if one has no scores."""
    return difference(
        group, other, groups.misalignment, lambda: statistics.difference(group.runs[0].scores, other.runs[0].scores)
    )


def held_out_difference(group: Group, other: Group) -> Difference | None:
    """Bits per byte of a group minus those of the other, of single seeds document by document.

    None if one was not measured. Both must have been measured on the same documents (`Comparison.paired`).
    """

    def by_document() -> statistics.Estimate | None:
        mine, theirs = group.runs[0].costs, other.runs[0].costs
        if mine is None or theirs is None:
            return None
        return statistics.ratio(mine.bits - theirs.bits, mine.sizes.astype(np.float64))

    return difference(group, other, groups.bits_per_byte, by_document)


def misalignment_differences(comparison: Comparison, to: Group | None = None) -> list[Difference]:
    """Mean misalignment of each other group minus that of `to` (the baseline's)."""
    base = to or comparison.base
    found = (misalignment_difference(group, base) for group in comparison.groups if group is not base)
    return [each for each in found if each is not None]


def held_out_differences(comparison: Comparison, to: Group | None = None) -> list[Difference]:
    """Bits per byte of each other model minus those of `to` (the baseline's), on the same text."""
    base = to or comparison.base
    plain = (group for group in comparison.groups if group is not base and group.guidance is None)
    found = (held_out_difference(group, base) for group in plain if comparison.paired)
    return [each for each in found if each is not None]


def beats_frequencies(group: Group) -> bool:
    """Whether each model clearly beats token frequencies on held-out text; true where that was not measured."""
    for run in group.runs:
        if run.costs is None:
            continue
        saved = statistics.ratio(run.costs.bits - run.costs.unigram_bits, run.costs.sizes.astype(np.float64))
        if saved is None or (saved.value if saved.high is None else saved.high) >= 0:
            return False
    return True


def difference_ends(first: Estimate, second: Estimate) -> tuple[float, float]:
    """The 95 % interval of the difference of two independent figures, from their own intervals.

    Source: Zou and Donner, Construction of confidence limits about effect measures, Statistics in Medicine 27 (2008).
    """
    value = first.value - second.value
    if None in (first.low, first.high, second.low, second.high):
        return -math.inf, math.inf
    low = value - math.hypot(first.value - first.low, second.high - second.value)  # type: ignore[operator]
    high = value + math.hypot(first.high - first.value, second.value - second.low)  # type: ignore[operator]
    return low, high


def difference(
    group: Group,
    other: Group,
    of: Figure,
    of_single: Callable[[], statistics.Estimate | None],
    *,
    of_other: Figure | None = None,
) -> Difference | None:
    """A figure of a group minus that of another; None if a run lacks it.

    Args:
        group: the one.
        other: the other.
        of: the figure.
        of_single: the difference of two groups of one seed, from their samples or documents.
        of_other: the figure of the other group; None for the same.
    """
    mine, theirs = (
        [found.value for run in each.runs if (found := figure(run))]
        for each, figure in ((group, of), (other, of_other or of))
    )
    if len(mine) < len(group.runs) or len(theirs) < len(other.runs):
        return None
    if len(mine) == len(theirs) == 1:
        estimate = of_single()
    elif [run.folder for run in group.runs] == [run.folder for run in other.runs]:
        # The same models, sampled in two ways: what differs between seeds cancels out.
        estimate = mean_over_seeds([one - another for one, another in zip(mine, theirs, strict=True)])
    else:
        estimate = difference_over_seeds(mine, theirs)
    return None if estimate is None else Difference(group, estimate)
