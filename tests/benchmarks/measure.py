"""Time two ways of doing the same work, alternating, so that drift in the machine's speed affects both alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Rates of two ways in `unit`, one per round, and their ratio per round.

    `agreement` compares the two results in words, measured in the same run; it is empty if there are none.
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
    """Run both once to warm up, then `rounds` times, alternating; one call does `amount` of `unit` x seconds."""
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
