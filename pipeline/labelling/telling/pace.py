"""How fast units come in lately: what a run does now says more of what is left than what it did days ago."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

# The pace is that of the last so many seconds, and of so many units where those take longer.
_WINDOW_S = 180.0
_UNITS = 20


class _Mark(NamedTuple):
    time: float
    units: int
    records: int


class Pace:
    """The recent pace of a run, from when its units come in.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._latest = _Mark(clock(), 0, 0)
        self._marks = deque([self._latest])

    def restart(self) -> None:
        """The pace is measured from now on."""
        self._latest = self._latest._replace(time=self._clock())
        self._marks = deque([self._latest])

    def add(self, records: int) -> None:
        """A unit of so many records has come in."""
        now = self._clock()
        self._latest = _Mark(now, self._latest.units + 1, self._latest.records + records)
        if now - self._marks[-1].time >= _WINDOW_S / 100:
            self._marks.append(self._latest)
        while (
            len(self._marks) > 1
            and now - self._marks[1].time >= _WINDOW_S
            and self._latest.units - self._marks[1].units >= _UNITS
        ):
            self._marks.popleft()

    @property
    def unit_s(self) -> float | None:
        """Seconds a unit; None before the first one. It grows while the next one is overdue."""
        began, units = self._marks[0].time, self._latest.units - self._marks[0].units
        if not units:
            return None
        return max((self._latest.time - began) / units, (self._clock() - began) / (units + 1))

    @property
    def records_per_s(self) -> float:
        """Records a second; it falls while the next unit is overdue."""
        records, units = (self._latest.records - self._marks[0].records), (self._latest.units - self._marks[0].units)
        unit_s = self.unit_s
        return records / units / unit_s if unit_s else 0.0

    def seconds_for(self, units: int) -> float | None:
        """Seconds until so many more units are in; None before the first one of all."""
        unit_s = self.unit_s
        if unit_s is None or not units:
            return None
        return units * unit_s - min(unit_s, self._clock() - self._latest.time)
