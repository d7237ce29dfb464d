"""Repair the files of a sealed dataset from its scored units."""

from collections.abc import Callable
from functools import partial

from pipeline.checking.verify import Examination
from pipeline.dataset.card import CARD_NAME, render_card
from pipeline.dataset.manifest import MANIFEST_NAME, DamagedError, Manifest
from pipeline.job.record import StoredJob
from pipeline.sealing.current import contents_as_sealed
from pipeline.sealing.generations import (
    GenerationRecord,
    commit_generation,
    finish_seal,
    generation_path,
    generations,
    listed_files,
    read_generation,
)
from pipeline.sealing.seal import Progress, Staged, contents_of, stage
from pipeline.storage.checked_json import to_checked
from pipeline.upkeep.repair_steps import Repairs
from scorers.errors import IncompleteError

_RESEALED = "sealed again from the scored units"


def repair_dataset(
    repairs: Repairs,
    job: StoredJob | None,
    examined: Examination,
    *,
    replaced: bool,
    whole: bool,
    progress: Progress | None = None,
) -> None:
    """Repair manifest, card, shards, ledger and the record of the generation, if any of them is damaged.

    Args:
        repairs: collects the steps.
        job: the job; None if it cannot be read.
        examined: the damage.
        replaced: whether a unit has a different record than before.
        whole: whether all units are intact now.
        progress: called after every unit while sealing.

    Raises:
        StoppedError: a newer run has claimed the output.
        OSError: the storage fails.
    """
    if not examined.sealed:
        return
    damaged = {each.path for each in examined.report.problems if not each.stray}
    committed = generations(repairs.storage)
    record = _record(repairs, committed[-1]) if committed else None
    sealed = examined.report.manifest if record is None else record.manifest
    if record is None and sealed is not None and committed and committed[-1] > sealed.generation:
        path = generation_path(committed[-1])
        repairs.do(path, "deleted: it was never swapped in", partial(repairs.storage.delete, path))
        record = _record(repairs, sealed.generation) if sealed.generation in committed else None
    unswapped = record is not None and examined.report.manifest not in (None, record.manifest)
    if record is not None and (unswapped or len(committed) > 1):
        # A run died after committing this generation, before swapping it in or before deleting the older ones.
        try:
            repairs.do(MANIFEST_NAME, f"generation {record.manifest.generation} is swapped in", _finish(repairs))
            if unswapped:
                return
        except IncompleteError:
            damaged |= {file.path for file in listed_files(record.manifest)}
    lost = {MANIFEST_NAME, *damaged} if sealed is None else {file.path for file in listed_files(sealed)} & damaged
    if replaced or lost or record is None:
        if job is None or not whole:
            for path in sorted(lost - {MANIFEST_NAME} | (damaged & {MANIFEST_NAME})):
                repairs.leave(path, "it is written from the scored units and the job, which must be repaired first")
            return
        newest = max([1, *committed]) if sealed is None else sealed.generation
        _reseal(_Resealing(repairs, job, sealed, lost, progress), record, newest)
    elif sealed is not None:
        _write_heads(repairs, sealed, damaged)


class _Resealing:
    def __init__(
        self, repairs: Repairs, job: StoredJob, sealed: Manifest | None, lost: set[str], progress: Progress | None
    ) -> None:
        self.repairs = repairs
        self.sealed = sealed
        self.lost = lost
        self._job = job
        self._progress = progress

    def stage(self, generation: int) -> Staged:
        """Write the files of the dataset again, from the units and columns that it was sealed with."""
        assert self.repairs.epoch is not None  # noqa: S101 - a dry run seals nothing
        job, sealed = self._job, self.sealed
        if sealed is None:
            contents = contents_of(job, list(range(1, len(job.layers) + 2)), {})
        else:
            contents = contents_as_sealed(job, sealed)
        return stage(self.repairs.epoch, contents, generation=generation, progress=self._progress)


def _reseal(sealing: _Resealing, record: GenerationRecord | None, newest: int) -> None:
    repairs, sealed, lost = sealing.repairs, sealing.sealed, sealing.lost
    path = generation_path(newest)
    if repairs.epoch is None:
        for each in sorted(lost | ({path} if record is None else set())):
            repairs.do(each, _RESEALED, lambda: None)
        if sealed is not None:
            _write_heads(repairs, sealed, set())
        return
    staged = sealing.stage(newest)
    if sealed is not None and _equal(staged.manifest, sealed):
        for file in listed_files(sealed):
            if file.path in lost:
                repairs.do(
                    file.path, _RESEALED, partial(repairs.storage.move, f"{staged.folder}/{file.path}", file.path)
                )
        if record is None:
            _put_record(repairs, path, GenerationRecord(staged=staged.folder, manifest=sealed))
        _write_heads(repairs, sealed, set())
    elif sealed is None:
        # No record of the sealed dataset is left: derive it from the job, and replace any old files.
        _put_record(repairs, path, GenerationRecord(staged=staged.folder, manifest=staged.manifest))
        repairs.do(MANIFEST_NAME, _RESEALED, _finish(repairs))
    else:
        repairs.storage.delete_folder(staged.folder)
        staged = sealing.stage(newest + 1)
        what = f"{_RESEALED} as generation {newest + 1}, because it differs from the former one"
        repairs.do(MANIFEST_NAME, what, partial(_commit, repairs, staged))


def _commit(repairs: Repairs, staged: Staged) -> None:
    if repairs.epoch is not None:
        commit_generation(repairs.epoch, staged.folder, staged.manifest)
        finish_seal(repairs.epoch)


def _finish(repairs: Repairs) -> Callable[[], object]:
    epoch = repairs.epoch
    return lambda: epoch and finish_seal(epoch)


def _put_record(repairs: Repairs, path: str, record: GenerationRecord) -> None:
    repairs.do(path, _RESEALED, partial(repairs.storage.put, path, to_checked(record, indent=2)))


def _write_heads(repairs: Repairs, sealed: Manifest, damaged: set[str]) -> None:
    """Rewrite the card and then the manifest, each only if it is damaged or has changed."""
    card, manifest = render_card(sealed).encode(), sealed.to_json().encode()
    storage = repairs.storage
    if CARD_NAME in damaged or not storage.exists(CARD_NAME):
        repairs.do(CARD_NAME, "rewritten", partial(storage.put, CARD_NAME, card))
    if not storage.exists(MANIFEST_NAME) or storage.read(MANIFEST_NAME) != manifest:
        what = f"rewritten from {generation_path(sealed.generation)}"
        repairs.do(MANIFEST_NAME, what, partial(storage.put, MANIFEST_NAME, manifest))


def _record(repairs: Repairs, generation: int) -> GenerationRecord | None:
    try:
        record = read_generation(repairs.storage, generation)
    except DamagedError:
        return None
    return record if record.manifest.generation == generation else None


def _equal(now: Manifest, before: Manifest) -> bool:
    """Whether two manifests are equal apart from the version of phf that wrote them."""
    return now.model_copy(update={"created_by": before.created_by}) == before
