"""How a unit becomes part of the dataset, exactly once, whoever dies when.

A worker stages a part and returns its size and hash. The driver, and nobody else, commits it in two steps: it creates
the unit's record (`units/00000000.json`, create-if-absent: the commit point), then moves the parts that the record
names to `units/00000000/<group>.parquet`. A driver that dies between the two leaves a record whose parts are still
staged; `recover` moves them.

One driver at a time: each claims the next epoch (`job/epochs/00000001.json`, create-if-absent). Before each durable
step a driver looks for an epoch after its own; the newest wins, the older stops. No clock takes part. A driver that was
overtaken between its look and its record has committed that unit properly: the newer one finds the record and keeps it.
"""

import itertools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from pipeline.corpus.plan import Unit
from pipeline.corpus.records import Quarantined
from pipeline.failpoints import failpoint
from pipeline.labelling.worker import PartResult
from pipeline.storage import Storage
from scorers.errors import IncompleteError, StoppedError

EPOCHS = "job/epochs"
UNITS = "units"
STAGING = "staging"


class PartFile(BaseModel):
    """A part of a committed unit: where it was staged, where it is, and what it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str
    staged: str
    path: str
    size: int
    sha256: str
    rows: int


class UnitRecord(BaseModel):
    """The commit record of a unit.

    Attributes:
        unit: its index in the plan.
        epoch: of the driver that committed it.
        parts: one a group, the base group first. Rows that any group quarantined are in `quarantined` and, once the
            parts are joined, in the dataset no more.
        records: that were read, `quarantined` ones included.
        empty, sentences, bytes_text: of the base part's rows, before the other groups' quarantine is taken out.
        quarantined: each record once, in the order of the groups.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: int
    epoch: int
    parts: list[PartFile]
    records: int
    empty: int
    sentences: int
    bytes_text: int
    quarantined: list[Quarantined]

    @property
    def path(self) -> str:
        """Where the record is kept."""
        return record_path(self.unit)


def record_path(unit: int) -> str:
    """Path of a unit's commit record."""
    return f"{UNITS}/{unit:08d}.json"


def part_path(unit: int, group: str) -> str:
    """Path of a group's part of a committed unit."""
    return f"{UNITS}/{unit:08d}/{group}.parquet"


def read_record(storage: Storage, unit: int) -> UnitRecord:
    """The commit record of a unit; `FileNotFoundError` if it is not committed."""
    return UnitRecord.model_validate_json(storage.read(record_path(unit)))


def committed_units(storage: Storage) -> Iterator[int]:
    """Indices of the committed units, in order, by one listing."""
    for unit, committed, _ in _units(storage):
        if committed:
            yield unit


@dataclass(frozen=True)
class Epoch:
    """A driver's claim to the output folder; the newest claim wins."""

    storage: Storage
    number: int

    @staticmethod
    def claim(storage: Storage) -> "Epoch":
        """Claim the next epoch, which stops every older driver at its next durable step."""
        token = secrets.token_hex(16).encode()
        taken = [int(name.removesuffix(".json")) for name in storage.children(EPOCHS)]
        number = max(taken, default=0) + 1
        while not _create(storage, f"{EPOCHS}/{number:08d}.json", token):
            number += 1
        return Epoch(storage, number)

    @property
    def staging(self) -> str:
        """Folder of what this driver's workers stage; no other driver's workers write there."""
        return f"{STAGING}/{self.number:08d}"

    def check(self) -> None:
        """Go on only as the newest driver.

        Raises:
            StoppedError: a newer driver has claimed the output.
            IncompleteError: the claim itself is not there: the output was moved, deleted, or is not mounted any more,
                and what would be written now would go elsewhere.
        """
        # Epochs are claimed without gaps, so that the next one is the only one to look for.
        claims = self.storage.children(EPOCHS)
        if f"{self.number:08d}.json" not in claims:
            raise IncompleteError(
                f"{self.storage.uri} is not the folder any more in which this run began: it was moved, deleted, or is "
                "not mounted now. What is committed stays there; the same command goes on once it is back."
            )
        if f"{self.number + 1:08d}.json" in claims:
            raise StoppedError(
                f"A newer `phf label` has taken over {self.storage.uri}; this one stops. Nothing is lost: "
                "the newer run goes on from what is committed."
            )


@dataclass(frozen=True)
class Committer:
    """Commits units in the name of an epoch."""

    epoch: Epoch

    def commit(self, unit: Unit, parts: Sequence[PartResult]) -> UnitRecord:
        """Commit a unit whose parts, one a group and the base group first, are all staged.

        Returns:
            The unit's record: this driver's, or that of an older driver that was quicker by a moment.

        Raises:
            StoppedError: a newer driver has claimed the output.
            IncompleteError: a staged part is not there, or not whole.
            OSError: the storage fails.
        """
        storage = self.epoch.storage
        for part in parts:
            self._check_staged(part)
        self.epoch.check()
        record = _record(unit, self.epoch.number, parts)
        if not _create(storage, record.path, record.model_dump_json().encode()):
            record = read_record(storage, unit.index)
        failpoint("record-created")
        _move_parts(storage, record)
        return record

    def recover(self, groups: Sequence[str]) -> set[int]:
        """The committed units, each with all its parts in place: finishes what a dead driver had begun.

        Raises:
            IncompleteError: a part of a committed unit is lost.
            OSError: the storage fails.
        """
        storage = self.epoch.storage
        committed = set()
        for unit, is_committed, names in _units(storage):
            if is_committed:
                committed.add(unit)
                if not names.issuperset(f"{group}.parquet" for group in groups):
                    _move_parts(storage, read_record(storage, unit))
        return committed

    def _check_staged(self, part: PartResult) -> None:
        storage = self.epoch.storage
        size = storage.size(part.staged)
        if size != part.size:
            found = "is not there" if size is None else f"has {size} bytes, not {part.size}"
            raise IncompleteError(
                f"A worker staged {part.staged}, but below {storage.uri} it {found}. Where workers run on other "
                "machines, the output must be a folder that all of them share, or an object store."
            )


def _record(unit: Unit, epoch: int, parts: Sequence[PartResult]) -> UnitRecord:
    base = parts[0]
    quarantined: dict[tuple[str, int], Quarantined] = {}
    for part in parts:
        for each in part.quarantined:
            quarantined.setdefault((each.source, each.position), each)
    return UnitRecord(
        unit=unit.index,
        epoch=epoch,
        parts=[
            PartFile(
                group=part.group,
                staged=part.staged,
                path=part_path(unit.index, part.group),
                size=part.size,
                sha256=part.sha256,
                rows=part.rows,
            )
            for part in parts
        ],
        records=base.records,
        empty=base.empty,
        sentences=base.sentences,
        bytes_text=base.bytes_text,
        quarantined=list(quarantined.values()),
    )


def _move_parts(storage: Storage, record: UnitRecord) -> None:
    for part in record.parts:
        try:
            storage.move(part.staged, part.path)
            failpoint("part-moved")
        except FileNotFoundError:
            raise IncompleteError(
                f"{storage.uri} is damaged: {record.path} says that the unit is committed, but {part.path} is missing. "
                f"Delete {record.path} to have the unit labelled again."
            ) from None


def _create(storage: Storage, path: str, data: bytes) -> bool:
    """Whether it was us who created the file: a retried request may have met its own first attempt."""
    return storage.put_if_absent(path, data) or storage.read(path) == data


def _units(storage: Storage) -> Iterator[tuple[int, bool, set[str]]]:
    """Each unit below `units/`: its index, whether it is committed, and the names of its parts that are in place."""
    paths = (info.path.removeprefix(f"{UNITS}/") for info in storage.list(UNITS))
    paths = (path for path in paths if path[:8].isdigit())
    for name, group in itertools.groupby(paths, key=lambda path: path[:8]):
        entries = set(group)
        yield int(name), f"{name}.json" in entries, {entry[9:] for entry in entries if entry[8] == "/"}
