"""What is staged: parts of units that are committed or never were, and how to clear it without losing one."""

from collections.abc import Iterator

from pipeline.storage import Storage
from pipeline.units.epoch import STAGING, Epoch
from pipeline.units.records import PartFile, UnitRecord
from pipeline.units.store import UnitStore, layer_numbers
from pipeline.units.survey import read_record


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
        for part in parts_of(storage, info.path.rpartition("/")[2]):
            if part.staged == info.path:
                epoch.check()
                storage.move(part.staged, part.path)
    storage.delete_folder(STAGING)


def parts_of(storage: Storage, name: str) -> Iterator[PartFile]:
    """The parts of the committed unit, in all layers, that a file is named after."""
    if not name[:8].isdecimal():
        return
    for layer in layer_numbers(storage):
        record = read_record(UnitStore(storage, layer), int(name[:8]))
        if isinstance(record, UnitRecord):
            yield from record.parts
