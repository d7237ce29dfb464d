"""Figures of a labelling run while it goes."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.labelling.telling.activity import Activity
from pipeline.labelling.telling.pace import Pace
from pipeline.labelling.workers.worker import PartResult
from pipeline.units.records import UnitRecord

# Entries of `Progress.seconds` that are no score columns.
STEPS = ("read", "split", "write")


@dataclass
class Progress:
    """What this run has done so far.

    Attributes:
        units: of the whole job; `before` of them were committed when this run began, `committed` are now.
        workers: that this run began with, of all groups.
        activity: who works at what.
        records, sentences, bytes_text: of the units that this run committed; `bytes_text` in UTF-8 bytes.
        quarantined: records by reason, of these units.
        seconds: summed over workers, by score column and by step (`read`, `split`, `write`).
    """

    units: int
    before: int
    workers: int
    activity: Activity = field(default_factory=Activity)
    records: int = 0
    sentences: int = 0
    bytes_text: int = 0
    committed: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.committed = self.before
        self._began = self.clock()
        self._pace = Pace(self.clock)
        # How long workers take to load their models says nothing of how long units take.
        self.activity.on_begin = self._pace.restart

    def restart(self) -> None:
        """Labelling begins now, not when this was made."""
        self._began = self.clock()
        self._pace.restart()

    def add(self, record: UnitRecord, parts: Sequence[PartResult]) -> None:
        """Count a unit that has just been committed."""
        self.committed += 1
        self.records += record.records
        self.sentences += record.sentences
        self.bytes_text += record.bytes_text
        self.quarantined.update(each.reason for each in record.quarantined)
        for part in parts:
            self.seconds.update(part.seconds)
        self._pace.add(record.records)

    @property
    def failed(self) -> Sequence[str]:
        """Names of the units that were given up."""
        return self.activity.given_up_units

    @property
    def working(self) -> int:
        """Workers that have a unit."""
        return self.activity.working

    @property
    def elapsed_s(self) -> float:
        """Seconds since this run began to label."""
        return self.clock() - self._began

    @property
    def records_per_s(self) -> float:
        """Records a second, lately."""
        return self._pace.records_per_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds until all units are done at the recent pace; None before the first one, and at the end."""
        return self._pace.seconds_for(self.units - self.committed - len(self.failed))
