"""Label single units of a layer again, with the code of the labelling job, and replace their parts and records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.config import LabelExecution
from pipeline.corpus.plan import Plan, Unit
from pipeline.job.epoch import Epoch
from pipeline.job.record import StoredJob
from pipeline.job.unit_records import UnitRecord
from pipeline.job.unit_store import FOLDER_UNITS, UnitStore
from pipeline.labelling.commit import Committer
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.resolve import check_layer, resolve_layer
from pipeline.labelling.run import Run, RunContext
from pipeline.labelling.workers.worker import PartResult
from pipeline.storage.checked_json import to_checked
from pipeline.storage.failpoints import failpoint
from pipeline.upkeep.repair_job import check_input, check_input_bytes
from pipeline.upkeep.repair_steps import Repairs, Step
from scorers import sentences
from scorers.errors import StoppedError, UserError

Lost = Mapping[int, tuple[UnitRecord | None, Sequence[str]]]
"""By unit: its record, or None if that is lost; and the groups whose parts are damaged, empty for all."""


@dataclass
class Outcome:
    """The result of relabelling.

    Attributes:
        replaced: units whose record was replaced by a different one.
        other_rows: those among them whose quarantine, and so whose rows, changed.
    """

    replaced: set[int] = field(default_factory=set)
    other_rows: set[int] = field(default_factory=set)


def relabel(
    repairs: Repairs,
    job: StoredJob,
    layer: int,
    lost: Lost,
    execution: LabelExecution,
    reporter: Reporter,
) -> Outcome:
    """Label units of one layer again, only the groups with damaged parts; record in `repairs` what is impossible.

    Raises:
        StoppedError: stopped by a signal or a newer driver.
        OSError: the storage fails.
    """
    store = UnitStore(job.storage, layer)
    outcome = Outcome()
    try:
        _check_code(job, layer, execution)
        resolved = resolve_layer(job, layer, execution)
    except UserError as error:
        for unit, (_, damaged) in lost.items():
            _leave(repairs, store, unit, damaged, error)
        return outcome
    groups = resolved.groups
    passes: dict[tuple[str, ...], dict[int, UnitRecord | None]] = {}
    for unit, (record, damaged) in lost.items():
        refused = _refused(job.plan, job.plan.units[unit]) if layer == 1 else None
        if refused is not None:
            _leave(repairs, store, unit, damaged, refused)
            continue
        alike = record is not None and damaged and [part.group for part in record.parts] == list(groups)
        passes.setdefault(tuple(group for group in groups if group in damaged or not alike), {})[unit] = record
    if repairs.epoch is None:
        for units in passes.values():
            repairs.done += [_step(store, unit, lost[unit]) for unit in units]
        return outcome
    while passes:
        names, units = passes.popitem()
        replacer = Replacer(repairs.epoch, store, job.plan, units, whole=len(names) == len(groups))
        try:
            Run(job, repairs.epoch, RunContext(reporter)).relabel(
                replace(resolved, groups={name: groups[name] for name in names}), replacer
            )
        except StoppedError:
            raise
        except UserError as error:
            for unit in set(units) - replacer.finished - replacer.whole_again:
                _leave(repairs, store, unit, lost[unit][1], error)
        repairs.done += [_step(store, unit, lost[unit]) for unit in sorted(replacer.finished)]
        outcome.replaced |= replacer.replaced
        outcome.other_rows |= replacer.other_rows
        if replacer.whole_again:
            passes.setdefault(tuple(groups), {}).update({unit: units[unit] for unit in replacer.whole_again})
    return outcome


class Replacer(Committer):
    """Commits relabelled units: moves the parts into place if their hashes are unchanged, else replaces the record.

    Args:
        wanted: the units to be labelled again, with their records; None if a record is lost.
        whole: whether all groups of the units are labelled again.

    Attributes:
        finished: units that are repaired.
        replaced: those among them whose record was replaced by a different one.
        other_rows: those among them whose quarantine, and so whose rows, changed.
        whole_again: units whose other groups must be labelled again too, because the new parts differ from the old.
    """

    def __init__(
        self, epoch: Epoch, store: UnitStore, plan: Plan, wanted: Mapping[int, UnitRecord | None], *, whole: bool
    ) -> None:
        super().__init__(epoch, store)
        self.finished: set[int] = set()
        self.replaced: set[int] = set()
        self.other_rows: set[int] = set()
        self.whole_again: set[int] = set()
        self._plan = plan
        self._wanted = wanted
        self._whole = whole
        self._unchanged: set[int] = set()

    def recover(self, units: int, groups: Sequence[str]) -> NDArray[np.bool_]:
        """Mark all units except the wanted ones as committed, without recovering anything."""
        committed = np.ones(units, dtype=np.bool_)
        committed[list(self._wanted)] = False
        return committed

    def commit(self, unit: Unit, parts: Sequence[PartResult]) -> UnitRecord:
        """Commit a relabelled unit, as the class says; errors as in `Committer.commit`.

        Raises:
            UserError: an input has changed.
        """
        for part in parts:
            self._check_staged(part)
        self.epoch.check()
        record = self._wanted[unit.index]
        if record is not None and _same(record, parts):
            old = {part.group: part for part in record.parts}
            for part in parts:
                self.epoch.storage.move(part.staged, old[part.group].path)
                failpoint("part-moved")
            self.finished.add(unit.index)
            return record
        if record is not None and not self._whole:
            self.whole_again.add(unit.index)
            return record
        if self.store.layer == 1:
            self._check_inputs(unit)
        return self._replace(record, self._record(unit, parts))

    def _replace(self, old: UnitRecord | None, new: UnitRecord) -> UnitRecord:
        storage = self.epoch.storage
        storage.delete(self.store.segment_path(new.unit // FOLDER_UNITS))
        storage.put(self.store.record_path(new.unit), to_checked(new))
        failpoint("record-replaced")
        self._move_parts(new)
        paths = {part.path for part in new.parts}
        for part in old.parts if old is not None else ():
            if part.path not in paths:
                storage.delete(part.path)
        self.finished.add(new.unit)
        self.replaced.add(new.unit)
        if old is not None and _quarantine(old) != _quarantine(new):
            self.other_rows.add(new.unit)
        return new

    def _check_inputs(self, unit: Unit) -> None:
        """Require unchanged inputs: different scores may come from another type of CPU, but not from other inputs."""
        for number in {part.source for part in unit.slices} - self._unchanged:
            check_input_bytes(self._plan.sources[number], self._plan.entries[number])
            self._unchanged.add(number)


def _same(record: UnitRecord, parts: Sequence[PartResult]) -> bool:
    known = {part.group: (part.size, part.sha256) for part in record.parts}
    return {part.group: (part.size, part.sha256) for part in parts}.items() <= known.items()


def _quarantine(record: UnitRecord) -> set[tuple[str, int]]:
    return {(each.source, each.position) for each in record.quarantined}


def _check_code(job: StoredJob, layer: int, execution: LabelExecution) -> None:
    check_layer(job, layer, execution)
    now = sentences.fingerprint()
    if job.record.sentences != now:
        raise UserError(
            f"the sentence splitter is not the one that {job.storage.uri} was labelled with: its fingerprint was "
            f"{job.record.sentences}, now it is {now}, because spaCy has changed"
        )


def _refused(plan: Plan, unit: Unit) -> UserError | None:
    """The error if an input of a unit is missing or has another size, else None."""
    for part in unit.slices:
        try:
            check_input(plan.sources[part.source], plan.entries[part.source])
        except UserError as error:
            return error
    return None


def _leave(repairs: Repairs, store: UnitStore, unit: int, damaged: Sequence[str], why: UserError) -> None:
    for path in [store.part_path(unit, group) for group in damaged] or [store.record_path(unit)]:
        repairs.leave(path, str(why))


def _step(store: UnitStore, unit: int, lost: tuple[UnitRecord | None, Sequence[str]]) -> Step:
    record, groups = lost
    path = store.part_path(unit, groups[0]) if record is not None and len(groups) == 1 else store.record_path(unit)
    return Step(path, "the unit is labelled again")
