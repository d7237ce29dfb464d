"""Count the attempts of units that failed or lost a worker."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.corpus.plan import Unit

# Node losses that do not count as attempts; after that many the unit itself is suspected of taking nodes down.
_FREE_NODE_LOSSES = 10


@dataclass(slots=True)
class AttemptCounts:
    """The attempts of a unit in a group.

    Attributes:
        used: attempts that count against the limit; reset to 0 when the unit becomes `isolated`.
        isolated: a worker was lost while labelling it, so its records are now tried one by one.
        node_losses: workers lost together with their node.
        tried: all attempts, whether or not they count.
    """

    used: int = 0
    isolated: bool = False
    node_losses: int = 0
    tried: int = 0


class Attempts:
    """Attempt counts, kept only for units that have failed.

    Args:
        limit: attempts a unit has in a group, and again as many once it is isolated.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._counts: dict[tuple[int, str], AttemptCounts] = {}

    def number(self, unit: Unit, group: str) -> int:
        """The number of the current or next attempt, from 1."""
        counts = self._counts.get((unit.index, group))
        return 1 + counts.tried if counts else 1

    def isolated(self, unit: Unit, group: str) -> bool:
        """Whether to try the unit record by record."""
        counts = self._counts.get((unit.index, group))
        return counts is not None and counts.isolated

    def failed(self, unit: Unit, group: str) -> bool:
        """Count an exception; return whether the unit has attempts left."""
        counts = self._of(unit, group)
        counts.tried += 1
        counts.used += 1
        return counts.used < self.limit

    def lost(self, unit: Unit, group: str) -> bool:
        """Count a lost worker; return whether the unit has attempts left. The first loss isolates the unit."""
        counts = self._of(unit, group)
        counts.tried += 1
        if not counts.isolated:
            counts.isolated = True
            counts.used = 0
            return True
        counts.used += 1
        return counts.used < self.limit

    def lost_with_node(self, unit: Unit, group: str) -> bool:
        """Count a worker lost with its node; return whether that costs the unit no attempt."""
        counts = self._of(unit, group)
        if counts.node_losses >= _FREE_NODE_LOSSES:
            return False
        counts.tried += 1
        counts.node_losses += 1
        return True

    def used(self, unit: Unit, group: str) -> int:
        """Attempts used up in the current mode: whole, or record by record."""
        return self._counts[unit.index, group].used

    def forget(self, unit: Unit, groups: Iterable[str]) -> None:
        """Drop the counts of a unit that is complete or given up."""
        if self._counts:
            for group in groups:
                self._counts.pop((unit.index, group), None)

    def _of(self, unit: Unit, group: str) -> AttemptCounts:
        return self._counts.setdefault((unit.index, group), AttemptCounts())
