"""What is staged: parts of units that are committed or never were, and how to clear it without losing one."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress

from pipeline.job.epoch import STAGING, Epoch
from pipeline.job.unit_folders import read_record
from pipeline.job.unit_records import PartFile, UnitRecord
from pipeline.job.units import UnitStore, layer_numbers
from pipeline.storage.base import Storage


def clear_staging(epoch: Epoch) -> None:
    """Delete all that is staged, after moving to their places the parts of committed units of any layer.

    A run that died between a unit's record and the move of its parts left those here, and it need not have been a run
    of the command that clears.

    Raises:
        StoppedError: a newer run has claimed the output.
        OSError: the storage fails.
    """
    storage = epoch.storage
    for info in list(storage.list(STAGING)):
        if (part := committed_part(storage, info.path)) is not None:
            epoch.check()
            storage.move(part.staged, part.path)
    storage.delete_folder(STAGING)


def committed_part(storage: Storage, path: str) -> PartFile | None:
    """The part of a committed unit, of whichever layer, that a staged file is; None where it is of none.

    By its content, as a run that labels several layers stages a unit of each at the same path: after the first was
    moved to its place, what lies there may be of the next, and not committed.

    Raises:
        OSError: the storage fails.
    """
    for part in parts_of(storage, path.rpartition("/")[2]):
        if part.staged == path and storage.size(path) == part.size:
            with suppress(FileNotFoundError):  # moved meanwhile
                if hashlib.sha256(storage.read(path)).hexdigest() == part.sha256:
                    return part
    return None


def parts_of(storage: Storage, name: str) -> Iterator[PartFile]:
    """The parts of the committed unit, in all layers, that a file is named after."""
    if not name[:8].isdecimal():
        return
    for layer in layer_numbers(storage):
        record = read_record(UnitStore(storage, layer), int(name[:8]))
        if isinstance(record, UnitRecord):
            yield from record.parts
