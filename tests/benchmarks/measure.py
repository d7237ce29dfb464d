"""Time two ways of doing the same work, in turn, so that a machine whose speed drifts is fair to both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Rates of two ways a round, in `unit`, and their ratios round by round.

    `agreement` says how the two results compare, in words, measured in the same run; empty where both only take time.
    """

    name: str
    unit: str
    our_rates: tuple[float, ...]
    reference_rates: tuple[float, ...]
    agreement: str = ""

    @property
    def ours(self) -> float:
        return statistics.median(self.our_rates)

    @property
    def reference(self) -> float:
        return statistics.median(self.reference_rates)

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(a / b for a, b in zip(self.our_rates, self.reference_rates, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def compare(
    name: str, unit: str, amount: float, ours: Callable[[], object], reference: Callable[[], object], *, rounds: int = 5
) -> Comparison:
    """Run both once to warm up, then `rounds` times in turn; `amount` of `unit` x seconds is what one call does."""
    ours()
    reference()
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(amount / _seconds(ours))
        theirs.append(amount / _seconds(reference))
    return Comparison(name, unit, tuple(mine), tuple(theirs))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
