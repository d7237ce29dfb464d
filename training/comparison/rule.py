"""The rule by which one objective counts as better than another, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from training.comparison.differences import (
    Difference,
    beats_frequencies,
    held_out_difference,
    misalignment_difference,
)
from training.comparison.groups import Group, bits_per_byte, misalignment
from training.comparison.load import Comparison
from training.comparison.wording import listed

MOST_COST = 0.05
RULE = (
    "One objective is better than another if its misalignment is lower and its held-out text costs at most "
    f"{MOST_COST:.0%} more bits per byte, both clearly: by the whole 95 % interval of the difference."
).replace("%", "\N{NO-BREAK SPACE}%", 1)

Expense = Literal["within", "costly", "uncertain cost", "unknown cost"]
Standing = Literal["better", "worse", "costly", "uncertain cost", "unclear", "unknown cost", "left out"]


@dataclass(frozen=True)
class LeftOut:
    """A group that the rule cannot judge, and why."""

    group: Group
    reason: str


@dataclass(frozen=True)
class Judgement:
    """What the rule says about a comparison.

    Attributes:
        comparison: the comparison.
        left_out: groups that are not judged, each with the reason.
        judged: the other groups.
        front: the judged groups that no other is better than.
        recommended: among the groups that are better than the baseline and on the front, the one with the lowest mean
            misalignment; None if there is none.
        tied: other such groups, whose misalignment does not clearly differ from the recommended one's.
    """

    comparison: Comparison

    @cached_property
    def left_out(self) -> list[LeftOut]:
        """The groups that are not judged."""
        found = []
        for group in self.comparison.groups:
            if group.figure(misalignment) is None:
                found.append(LeftOut(group, "none of its samples has a score"))
            elif not beats_frequencies(group):
                found.append(LeftOut(group, "it does not clearly beat the frequencies of tokens on held-out text"))
        return found

    @cached_property
    def judged(self) -> list[Group]:
        """The groups that can be judged."""
        left_out = [each.group for each in self.left_out]
        return [group for group in self.comparison.groups if all(group is not each for each in left_out)]

    @cached_property
    def front(self) -> list[Group]:
        """The groups that no other is better than."""
        return [
            group
            for group in self.judged
            if not any(self.standing(other, group) == "better" for other in self.judged if other is not group)
        ]

    def rings(self, drawn: Sequence[Group]) -> tuple[list[Group], str]:
        """The groups that a plot of some groups rings, those on the front, and a sentence about them for its caption.

        Where all or none are on the front, nothing is ringed.
        """
        front = [group for group in drawn if any(group is each for each in self.front)]
        if 0 < len(front) < len(drawn):
            labels = listed([group.label for group in front], "or")
            return front, f" A ring: by the rule of this page, no other is better than {labels}."
        judged = all(any(group is each for each in self.judged) for group in drawn)
        return [], " By the rule of this page, others are better than each of these." if judged and not front else ""

    @cached_property
    def recommended(self) -> Group | None:
        """The group to take."""
        return min(self._better, key=_misalignment, default=None)

    @cached_property
    def tied(self) -> list[Group]:
        """The groups that could as well be taken."""
        best = self.recommended
        if best is None:
            return []
        others = (misalignment_difference(group, best) for group in self._better if group is not best)
        return [each.group for each in others if each is not None and each.verdict == "unclear"]

    @cached_property
    def _better(self) -> list[Group]:
        base = self.comparison.base
        return [group for group in self.front if group is not base and self.standing(group, base) == "better"]

    def standing(self, group: Group, other: Group) -> Standing:
        """How a group stands against another.

        `costly`: less misaligned, at more than the rule allows; `uncertain cost`: at a cost whose interval reaches
        beyond it; `unknown cost`: not measured on the same text; `unclear`: misalignment does not clearly differ.
        """
        if not {id(group), id(other)} <= {id(each) for each in self.judged}:
            return "left out"
        difference = misalignment_difference(group, other)
        if difference is None or difference.verdict == "unclear":
            return "unclear"
        if difference.verdict == "higher":
            return "worse"
        expense = self.expense(group, other)
        return "better" if expense == "within" else expense

    def expense(self, group: Group, other: Group) -> Expense:
        """Whether the cost of a group against another is clearly within what the rule allows."""
        cost, base = self.cost(group, other), other.figure(bits_per_byte)
        if cost is None or base is None:
            return "unknown cost"
        limit = MOST_COST * base.value
        low, high = (cost.estimate.value if end is None else end for end in (cost.estimate.low, cost.estimate.high))
        return "within" if high <= limit else "costly" if low > limit else "uncertain cost"

    def cost(self, group: Group, other: Group) -> Difference | None:
        """Bits per byte of a group minus those of another; None if not measured on the same text."""
        return held_out_difference(group, other) if self.comparison.paired else None


def _misalignment(group: Group) -> float:
    estimate = group.figure(misalignment)
    return float("inf") if estimate is None else estimate.value
