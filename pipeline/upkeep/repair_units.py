"""Repair the scored units: records, parts and segments."""

from functools import partial

from pipeline.checking.unit_checker import UnitDamage
from pipeline.config import LabelExecution
from pipeline.job.record import StoredJob
from pipeline.job.unit_records import UnitRecord
from pipeline.job.unit_store import FOLDER_UNITS, UnitStore
from pipeline.labelling.monitoring.console import Reporter
from pipeline.storage.checked_json import to_checked
from pipeline.upkeep.relabelling import relabel
from pipeline.upkeep.repair_steps import Repairs
from scorers.errors import IncompleteError


def repair_units(
    repairs: Repairs,
    job: StoredJob | None,
    damage: UnitDamage,
    execution: LabelExecution,
    reporter: Reporter,
) -> bool:
    """Repair everything below `units/`, or record why that is impossible; return whether any unit's record changed.

    Raises:
        StoppedError: stopped by a signal or a newer driver.
        OSError: the storage fails.
    """
    storage = repairs.storage
    for (layer, unit), record in damage.copied.items():
        path = UnitStore(storage, layer).record_path(unit)
        repairs.do(path, "rewritten from its segment", partial(storage.put, path, to_checked(record)))
    for part in damage.staged:
        repairs.do(part.path, "moved into place from its staging folder", partial(storage.move, part.staged, part.path))
    _write_segments(repairs, set(damage.segments))
    lost = _lost_units(damage)
    if lost and job is None:
        for layer, units in lost.items():
            for unit in units:
                path = UnitStore(storage, layer).record_path(unit)
                repairs.leave(path, "the job must be repaired before the unit can be labelled again")
        return False
    folders: set[tuple[int, int]] = set()
    replaced = False
    for layer in range(1, len(job.layers) + 2) if job is not None else ():
        if job is None or layer not in lost:
            continue
        outcome = relabel(repairs, job, layer, lost[layer], execution, reporter)
        replaced = replaced or bool(outcome.replaced)
        folders |= {(layer, unit // FOLDER_UNITS) for unit in outcome.replaced}
        for unit in outcome.other_rows if layer == 1 else ():
            # Later layers scored the former rows of the unit.
            for later in range(2, len(job.layers) + 2):
                later_store = UnitStore(storage, later)
                if storage.exists(later_store.record_path(unit)):
                    lost.setdefault(later, {}).setdefault(unit, (later_store.read(unit), []))
    _write_segments(repairs, folders)
    return replaced


def _lost_units(damage: UnitDamage) -> dict[int, dict[int, tuple[UnitRecord | None, list[str]]]]:
    lost: dict[int, dict[int, tuple[UnitRecord | None, list[str]]]] = {}
    for (layer, unit), (record, groups) in damage.parts.items():
        lost.setdefault(layer, {})[unit] = (record, groups)
    for layer, unit in damage.unknown:
        lost.setdefault(layer, {})[unit] = (None, [])
    return lost


def _write_segments(repairs: Repairs, folders: set[tuple[int, int]]) -> None:
    for layer, folder in sorted(folders):
        store = UnitStore(repairs.storage, layer)
        path = store.segment_path(folder)
        try:
            repairs.do(path, "rewritten from the commit records", partial(store.write_segment, folder))
        except IncompleteError:
            # Some of its records are lost; readers use the remaining records until a later run writes the segment.
            repairs.do(path, "deleted, because some of its units are missing", partial(repairs.storage.delete, path))
