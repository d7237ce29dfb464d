"""How often a unit has been tried, in which way, and whose fault it was that it did not succeed."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.corpus.plan import Unit

# Losses with a node that count as nobody's fault; after so many the unit is suspected to take the nodes down.
_BLAMELESS = 10


@dataclass(slots=True)
class Trouble:
    """What a unit has been through in a group.

    Attributes:
        used: attempts it has used up, of those it has; they are counted anew once it is `isolated`.
        isolated: a worker was lost over it, so that from now on its records are tried one by one.
        blameless: workers that it lost with their node.
        tried: all that it has been through, together.
    """

    used: int = 0
    isolated: bool = False
    blameless: int = 0
    tried: int = 0


class Attempts:
    """Counts for units that had trouble, and only for those.

    Args:
        most: attempts a unit has in a group, and as many again once it is isolated.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._troubles: dict[tuple[int, str], Trouble] = {}

    def number(self, unit: Unit, group: str) -> int:
        """Of the attempt that is being made, or comes next, from 1."""
        trouble = self._troubles.get((unit.index, group))
        return 1 + trouble.tried if trouble else 1

    def isolated(self, unit: Unit, group: str) -> bool:
        """Whether the unit is to be tried record by record."""
        trouble = self._troubles.get((unit.index, group))
        return trouble is not None and trouble.isolated

    def failed(self, unit: Unit, group: str) -> bool:
        """The unit raised; whether it has attempts left."""
        trouble = self._of(unit, group)
        trouble.tried += 1
        trouble.used += 1
        return trouble.used < self.most

    def lost(self, unit: Unit, group: str) -> bool:
        """Its worker was lost; whether it has attempts left. After the first such loss it has: it is isolated."""
        trouble = self._of(unit, group)
        trouble.tried += 1
        if not trouble.isolated:
            trouble.isolated = True
            trouble.used = 0
            return True
        trouble.used += 1
        return trouble.used < self.most

    def lost_with_node(self, unit: Unit, group: str) -> bool:
        """Its worker went with its node; whether that uses up no attempt."""
        trouble = self._of(unit, group)
        if trouble.blameless >= _BLAMELESS:
            return False
        trouble.tried += 1
        trouble.blameless += 1
        return True

    def used(self, unit: Unit, group: str) -> int:
        """Attempts that it has used up, in the way in which it is tried now."""
        return self._troubles[unit.index, group].used

    def forget(self, unit: Unit, groups: Iterable[str]) -> None:
        """The unit is complete or given up."""
        if self._troubles:
            for group in groups:
                self._troubles.pop((unit.index, group), None)

    def _of(self, unit: Unit, group: str) -> Trouble:
        return self._troubles.setdefault((unit.index, group), Trouble())
