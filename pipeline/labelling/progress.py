"""Figures of a labelling run while it goes, and the file in which other processes find them (`phf status`)."""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.labelling.worker import PartResult
from pipeline.storage import Storage
from pipeline.units.records import UnitRecord

PROGRESS = "job/progress.json"

State = Literal["labelling", "sealing", "stopped", "incomplete", "done"]


@dataclass
class Progress:
    """What this run has done so far.

    Attributes:
        units: of the whole job; `before` of them were committed when this run began, `committed` are now.
        workers: of all groups; `working` of them have begun a unit.
        records, sentences, bytes_text: of the units that this run committed; `bytes_text` in UTF-8 bytes.
        quarantined: records by reason, of these units.
        seconds: summed over workers, by score column and by step (`read`, `split`, `write`).
        failed: names of the units that were given up.
    """

    units: int
    before: int
    workers: int
    working: int = 0
    records: int = 0
    sentences: int = 0
    bytes_text: int = 0
    committed: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.committed = self.before
        self._began = self._latest = self.clock()

    def restart(self) -> None:
        """Labelling begins now, not when this was made."""
        self._began = self._latest = self.clock()

    def add(self, record: UnitRecord, parts: Sequence[PartResult]) -> None:
        """Count a unit that has just been committed."""
        self.committed += 1
        self._latest = self.clock()
        self.records += record.records
        self.sentences += record.sentences
        self.bytes_text += record.bytes_text
        self.quarantined.update(each.reason for each in record.quarantined)
        for part in parts:
            self.seconds.update(part.seconds)

    @property
    def elapsed_s(self) -> float:
        """Seconds since this run began to label."""
        return self.clock() - self._began

    @property
    def records_per_s(self) -> float:
        """Records of this run a second, up to its latest unit."""
        seconds = self._latest - self._began
        return self.records / seconds if seconds > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds until all units are done at this run's pace; None before the first one."""
        done = self.committed - self.before
        if not done:
            return None
        foreseen = (self._latest - self._began) / done * (self.units - self.committed)
        return max(0.0, foreseen - (self.clock() - self._latest))


class RunStatus(BaseModel):
    """What `job/progress.json` holds: the figures of `Progress`, and who wrote them when."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: State
    epoch: int
    host: str
    pid: int
    written: datetime
    units: int
    committed: int
    workers: int
    records: int
    elapsed_s: float
    records_per_s: float
    remaining_s: float | None
    seconds: dict[str, float]
    failed: list[str]


def write_status(storage: Storage, epoch: int, state: State, progress: Progress) -> None:
    """Replace `job/progress.json`."""
    status = RunStatus(
        state=state,
        epoch=epoch,
        host=os.uname().nodename,
        pid=os.getpid(),
        written=datetime.now(UTC),
        units=progress.units,
        committed=progress.committed,
        workers=progress.workers,
        records=progress.records,
        elapsed_s=progress.elapsed_s,
        records_per_s=progress.records_per_s,
        remaining_s=progress.remaining_s,
        seconds=dict(progress.seconds),
        failed=progress.failed[:100],
    )
    storage.put(PROGRESS, status.model_dump_json(indent=2).encode())


def read_status(storage: Storage) -> RunStatus | None:
    """The figures of the latest run, or None if there are none that can be read; they prove nothing."""
    try:
        return RunStatus.model_validate_json(storage.read(PROGRESS))
    except (FileNotFoundError, ValidationError):
        return None
