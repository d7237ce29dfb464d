"""The layout of a job's commit records and parts, and which units are committed.

A *layer* holds the scores of one command: layer 1 is that of `phf label` and also holds the rows; each `phf score` adds
a layer with its columns. Below `units/`, for layer 1:

- `0001/00000/00000007.json`: the commit record of unit 7;
- `0001/00000/00000007.cpu.parquet`: its part from the group `cpu`;
- `0001/00000.parquet`: a *segment* with the records of all units of the folder `00000`. It is written once all of them
  are committed and all their parts are in place, so that resuming, sealing and reporting read one file instead of a
  thousand. It may be deleted at any time, because the records remain.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.job.unit_records import SEGMENT_SCHEMA, UnitRecord, read_segment, records_of, to_segment
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import from_checked
from pipeline.storage.failpoints import failpoint
from scorers.errors import IncompleteError
from scorers.shell import phf

UNITS = "units"
# Units per folder: few enough to list quickly, many enough that a million units need only a thousand segments.
FOLDER_UNITS = 1000
# Reading a record takes a round trip to an object store.
_THREADS = 16

Totals = dict[str, int]


def layer_numbers(storage: Storage) -> list[int]:
    """The layers that have a folder, complete or not."""
    return [int(name[:4]) for name in storage.children(UNITS) if re.fullmatch(r"[0-9]{4}/", name)]


@dataclass(frozen=True)
class UnitStore:
    """The units of one layer of a job."""

    storage: Storage
    layer: int = 1

    @property
    def folder(self) -> str:
        """Folder of the layer."""
        return f"{UNITS}/{self.layer:04d}"

    def record_path(self, unit: int) -> str:
        """Path of a unit's commit record."""
        return f"{self._folder_of(unit)}/{unit:08d}.json"

    def part_path(self, unit: int, group: str) -> str:
        """Path of a group's part of a committed unit."""
        return f"{self._folder_of(unit)}/{unit:08d}.{group}.parquet"

    def segment_path(self, folder: int) -> str:
        """Path of the segment of the units from `folder * FOLDER_UNITS` on."""
        return f"{self.folder}/{folder:05d}.parquet"

    def read(self, unit: int) -> UnitRecord:
        """Read the commit record of a unit.

        Raises:
            FileNotFoundError: the unit is not committed.
            IncompleteError: the record is damaged.
        """
        path = self.record_path(unit)
        try:
            return from_checked(UnitRecord, self.storage.read(path))
        except ValueError as error:
            raise IncompleteError(
                f"{self.storage.uri}/{path} is damaged. `{phf('repair', self.storage.uri)}` labels the unit again. "
                f"What is wrong: {error}."
            ) from None

    def listing(self, units: int) -> tuple[NDArray[np.bool_], dict[int, set[str]]]:
        """Find out which of the first `units` units are committed, and which parts are in place.

        Returns:
            bool [units]; and by unit, only for folders without a segment, the groups whose parts are in place.
        """
        committed = np.zeros(units, dtype=np.bool_)
        in_place: dict[int, set[str]] = {}
        segments, folders = self._contents()
        for folder in range(-(-units // FOLDER_UNITS)):
            first = folder * FOLDER_UNITS
            if folder in segments:
                committed[first : first + FOLDER_UNITS] = True
                continue
            if folder not in folders:
                continue
            for unit, suffix in self.files(folder):
                if unit < units and suffix == ".json":
                    committed[unit] = True
                elif unit < units:
                    in_place.setdefault(unit, set()).add(suffix[1:].removesuffix(".parquet"))
        return committed, in_place

    def committed(self, units: int) -> NDArray[np.bool_]:
        """Which of the first `units` units are committed: bool [units]."""
        return self.listing(units)[0]

    def segments(self) -> set[int]:
        """Numbers of the folders that have a segment."""
        return self._contents()[0]

    def files(self, folder: int) -> Iterator[tuple[int, str]]:
        """The files of a folder, each as unit index and suffix: `.json` or `.<group>.parquet`."""
        for name in self.storage.children(f"{self.folder}/{folder:05d}"):
            if name[:8].isdecimal() and name[8:9] == ".":
                yield int(name[:8]), name[8:]

    def records(self, units: int) -> Iterator[UnitRecord]:
        """Yield the commit records of the first `units` units, in order.

        Raises:
            IncompleteError: a unit is not committed, or its record is damaged.
        """
        segments = self.segments()
        for folder in range(-(-units // FOLDER_UNITS)):
            yield from self._folder_records(folder, units, segments)

    def write_segment(self, folder: int) -> None:
        """Write the segment of a folder whose units are all committed, with their parts in place.

        Raises:
            IncompleteError: a unit is not committed, or its record is damaged.
        """
        first = folder * FOLDER_UNITS
        records = self._read_many(range(first, first + FOLDER_UNITS))
        self.storage.put(self.segment_path(folder), to_segment(records))
        failpoint("segment-written")

    def totals(self, units: int) -> tuple[Totals, dict[str, int]]:
        """Sum up the records of those of the first `units` units that are committed.

        Returns:
            `units`, `records`, `empty`, `sentences` and `bytes_text`; and quarantined records by reason.
        """
        totals = dict.fromkeys(("units", "records", "empty", "sentences", "bytes_text"), 0)
        reasons: dict[str, int] = {}
        committed, _ = self.listing(units)
        segments = self.segments()
        for folder in range(-(-units // FOLDER_UNITS)):
            first = folder * FOLDER_UNITS
            if (table := self._segment(folder, segments)) is None:
                wanted = [int(unit) for unit in first + np.flatnonzero(committed[first : first + FOLDER_UNITS])]
                table = pa.Table.from_pylist(
                    [record.model_dump() for record in self._read_many(wanted)], SEGMENT_SCHEMA
                )
            totals["units"] += table.num_rows
            for name in ("records", "empty", "sentences", "bytes_text"):
                totals[name] += int(np.sum(table.column(name).to_numpy()))
            for entries in table.column("quarantined").to_pylist():
                for each in entries:
                    reasons[each["reason"]] = reasons.get(each["reason"], 0) + 1
        return totals, dict(sorted(reasons.items()))

    def _contents(self) -> tuple[set[int], set[int]]:
        """Numbers of the folders that have a segment, and of the folders that exist."""
        names = [name for name in self.storage.children(self.folder) if name[:5].isdecimal()]
        segments, folders = ({int(name[:5]) for name in names if name[5:] == end} for end in (".parquet", "/"))
        return segments, folders

    def _folder_of(self, unit: int) -> str:
        return f"{self.folder}/{unit // FOLDER_UNITS:05d}"

    def _folder_records(self, folder: int, units: int, segments: set[int]) -> list[UnitRecord]:
        first = folder * FOLDER_UNITS
        stop = min(first + FOLDER_UNITS, units)
        if (table := self._segment(folder, segments)) is not None:
            with contextlib.suppress(ValueError):  # not our segment: fall back to the records
                records = records_of(table)[: stop - first]
                if [record.unit for record in records] == list(range(first, stop)):
                    return records
        return self._read_many(range(first, stop))

    def _segment(self, folder: int, segments: set[int]) -> pa.Table | None:
        """Read the rows of a segment; None if it is missing or damaged, since the records remain."""
        if folder not in segments:
            return None
        try:
            return read_segment(self.storage.read(self.segment_path(folder)))
        except (OSError, pa.ArrowException):
            return None

    def _read_many(self, units: Sequence[int]) -> list[UnitRecord]:
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(self._read_committed, units))

    def _read_committed(self, unit: int) -> UnitRecord:
        try:
            return self.read(unit)
        except FileNotFoundError:
            raise IncompleteError(
                f"{self.storage.uri} is incomplete: unit {unit:08d} is not labelled. Run the same command again to "
                "resume."
            ) from None
