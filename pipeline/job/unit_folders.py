"""Survey a folder of a layer, damaged or not: its files, commit records and segment."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from pipeline.job.unit_records import UnitRecord, read_segment, records_of
from pipeline.job.unit_store import FOLDER_UNITS, UnitStore
from pipeline.storage.checked_json import from_checked
from scorers.paths import UnsafeNameError

_THREADS = 16


class PathOutside(str):
    """The problem of a record that names a path outside the output, which may be malicious."""


@dataclass(frozen=True)
class FolderSurvey:
    """The state of a folder of a layer and of its segment.

    Attributes:
        files: size in bytes of every file in the folder, by name.
        records: by unit; from the unit's own file, or from the segment if that file is damaged or missing.
        damaged: by unit, the problem of the record's own file; includes units that only the segment contains.
        has_segment: whether there is a segment, damaged or not.
        segment_problem: the problem of the segment; None if it is whole or there is none.
    """

    files: Mapping[str, int]
    records: Mapping[int, UnitRecord]
    damaged: Mapping[int, str]
    has_segment: bool
    segment_problem: str | None

    @property
    def unknown(self) -> set[int]:
        """Units whose record is damaged and has no copy."""
        return set(self.damaged) - set(self.records)


def survey_folder(store: UnitStore, folder: int) -> FolderSurvey:
    """Read a folder and its segment.

    Raises:
        OSError: the storage fails.
    """
    prefix = f"{store.folder}/{folder:05d}/"
    files = {info.path.removeprefix(prefix): info.size for info in store.storage.list(prefix)}
    units = [int(name[:8]) for name in files if is_record(name) and int(name[:8]) // FOLDER_UNITS == folder]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = dict(zip(units, threads.map(lambda unit: read_record(store, unit), units), strict=True))
    records = {unit: record for unit, record in found.items() if isinstance(record, UnitRecord)}
    damaged = {unit: what for unit, what in found.items() if isinstance(what, str)}
    has_segment, problem, copies = _read_segment(store, folder)
    for unit, copy in copies.items():
        if unit not in found:
            damaged[unit] = "is missing"
        if unit not in records:
            records[unit] = copy
        elif records[unit] != copy:
            problem = "does not hold the records that it stands for"
    return FolderSurvey(files, records, damaged, has_segment, problem)


def is_record(name: str) -> bool:
    """Whether a file name is that of a commit record."""
    return len(name) == 13 and name[:8].isdecimal() and name[8:] == ".json"


def read_record(store: UnitStore, unit: int) -> UnitRecord | str:
    """Read the record of a unit, or describe what is wrong with its file."""
    try:
        record = from_checked(UnitRecord, store.storage.read(store.record_path(unit)))
    except FileNotFoundError:
        return "is missing"
    except UnsafeNameError as error:
        return PathOutside(f"is damaged: {error}")
    except ValueError as error:
        return f"is damaged: {error}"
    return record if _is_of(record, unit, store) else "is the record of another unit"


def _is_of(record: UnitRecord, unit: int, store: UnitStore) -> bool:
    return record.unit == unit and all(part.path == store.part_path(unit, part.group) for part in record.parts)


def _read_segment(store: UnitStore, folder: int) -> tuple[bool, str | None, dict[int, UnitRecord]]:
    try:
        records = records_of(read_segment(store.storage.read(store.segment_path(folder))))
    except FileNotFoundError:
        return False, None, {}
    except (OSError, pa.ArrowException, TypeError, ValueError) as error:
        return True, f"cannot be read: {str(error).partition(chr(10))[0].rstrip('.')}", {}
    first = folder * FOLDER_UNITS
    if [record.unit for record in records] != list(range(first, first + FOLDER_UNITS)) or not all(
        _is_of(record, record.unit, store) for record in records
    ):
        return True, f"does not hold the records of the units {first} to {first + FOLDER_UNITS - 1}", {}
    return True, None, {record.unit: record for record in records}
