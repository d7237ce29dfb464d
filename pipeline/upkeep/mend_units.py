"""Mend the scored units: records, parts and segments."""

from functools import partial

from pipeline.checking.units import UnitDamage
from pipeline.config import LabelExecution
from pipeline.job.record import StoredJob
from pipeline.job.unit_records import UnitRecord
from pipeline.job.units import FOLDER_UNITS, UnitStore
from pipeline.labelling.monitoring.console import Reporter
from pipeline.storage.checked_json import to_checked
from pipeline.upkeep.mending import Mending
from pipeline.upkeep.relabelling import relabel
from scorers.errors import IncompleteError


def mend_units(
    mending: Mending,
    job: StoredJob | None,
    damage: UnitDamage,
    execution: LabelExecution,
    reporter: Reporter,
) -> bool:
    """Mend everything below `units/`, or say why not; returns whether a unit has another record than before.

    Raises:
        StoppedError: stopped by a signal or a newer driver.
        OSError: the storage fails.
    """
    storage = mending.storage
    for (layer, unit), record in damage.copied.items():
        path = UnitStore(storage, layer).record_path(unit)
        mending.do(path, "written anew from its segment", partial(storage.put, path, to_checked(record)))
    for part in damage.staged:
        mending.do(part.path, "moved here from where it was staged", partial(storage.move, part.staged, part.path))
    _write_segments(mending, set(damage.segments))
    lost = _lost_units(damage)
    if lost and job is None:
        for layer, units in lost.items():
            for unit in units:
                path = UnitStore(storage, layer).record_path(unit)
                mending.leave(path, "the job, which says how to label it again, must be mended first")
        return False
    folders: set[tuple[int, int]] = set()
    replaced = False
    for layer in range(1, len(job.layers) + 2) if job is not None else ():
        if job is None or layer not in lost:
            continue
        outcome = relabel(mending, job, layer, lost[layer], execution, reporter)
        replaced = replaced or bool(outcome.replaced)
        folders |= {(layer, unit // FOLDER_UNITS) for unit in outcome.replaced}
        for unit in outcome.other_rows if layer == 1 else ():
            # A later layer scored the rows that the unit had before.
            for later in range(2, len(job.layers) + 2):
                later_store = UnitStore(storage, later)
                if storage.exists(later_store.record_path(unit)):
                    lost.setdefault(later, {}).setdefault(unit, (later_store.read(unit), []))
    _write_segments(mending, folders)
    return replaced


def _lost_units(damage: UnitDamage) -> dict[int, dict[int, tuple[UnitRecord | None, list[str]]]]:
    lost: dict[int, dict[int, tuple[UnitRecord | None, list[str]]]] = {}
    for (layer, unit), (record, groups) in damage.parts.items():
        lost.setdefault(layer, {})[unit] = (record, groups)
    for layer, unit in damage.unknown:
        lost.setdefault(layer, {})[unit] = (None, [])
    return lost


def _write_segments(mending: Mending, folders: set[tuple[int, int]]) -> None:
    for layer, folder in sorted(folders):
        store = UnitStore(mending.storage, layer)
        path = store.segment_path(folder)
        try:
            mending.do(path, "written anew from the commit records", partial(store.write_segment, folder))
        except IncompleteError:
            # It stands for records that are lost themselves: they speak for themselves until a later run writes it.
            mending.do(path, "deleted, as not all its units are there", partial(mending.storage.delete, path))
