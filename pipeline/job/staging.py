"""Clear the staging folder without losing parts of committed units."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress

from pipeline.job.epoch import STAGING, Epoch
from pipeline.job.unit_folders import read_record
from pipeline.job.unit_records import PartFile, UnitRecord
from pipeline.job.unit_store import UnitStore, layer_numbers
from pipeline.storage.base import Storage


def clear_staging(epoch: Epoch) -> None:
    """Move staged parts of committed units of any layer into place, then delete the staging folder.

    A run of any command that died between writing a unit's record and moving its parts has left those here.

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
    """The committed part, of any layer, that a staged file is; None if it belongs to no committed unit.

    Compares the content, because a run that labels several layers stages each layer's unit at the same path: once the
    first layer's part is moved, the file there may be an uncommitted part of the next.

    Raises:
        OSError: the storage fails.
    """
    for part in parts_of(storage, path.rpartition("/")[2]):
        if part.staged == path and storage.size(path) == part.size:
            with suppress(FileNotFoundError):  # moved in the meantime
                if hashlib.sha256(storage.read(path)).hexdigest() == part.sha256:
                    return part
    return None


def parts_of(storage: Storage, name: str) -> Iterator[PartFile]:
    """The parts in all layers of the committed unit that a staged file is named after."""
    if not name[:8].isdecimal():
        return
    for layer in layer_numbers(storage):
        record = read_record(UnitStore(storage, layer), int(name[:8]))
        if isinstance(record, UnitRecord):
            yield from record.parts
