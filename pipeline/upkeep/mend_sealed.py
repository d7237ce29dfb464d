"""Mend the files of a sealed dataset from its scored units."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.checking.verify import Examination
from pipeline.corpus.plan import Plan, Units
from pipeline.dataset.card import CARD_NAME, render_card
from pipeline.dataset.manifest import MANIFEST_NAME, DamagedError, Manifest
from pipeline.job.record import StoredJob
from pipeline.sealing.generations import (
    GenerationRecord,
    commit_generation,
    finish_seal,
    generation_path,
    generations,
    listed_files,
    read_generation,
)
from pipeline.sealing.seal import Progress, Staged, stage
from pipeline.storage.checked_json import to_checked
from pipeline.upkeep.mending import Mending
from scorers.errors import IncompleteError

_ANEW = "sealed again from the scored units"


def mend_dataset(
    mending: Mending,
    job: StoredJob | None,
    examined: Examination,
    *,
    replaced: bool,
    whole: bool,
    progress: Progress | None = None,
) -> None:
    """Mend manifest, card, shards, ledger and the record of the generation, where any of them is damaged.

    Args:
        mending: what was done before, and takes what is done here.
        job: None where it cannot be read.
        examined: what is wrong.
        replaced: whether a unit has another record than before.
        whole: whether all units are whole now.
        progress: is told of every unit while it seals.

    Raises:
        StoppedError: a newer run has claimed the output.
        OSError: the storage fails.
    """
    if not examined.sealed:
        return
    damaged = {each.path for each in examined.report.problems if not each.stray}
    committed = generations(mending.storage)
    record = _record(mending, committed[-1]) if committed else None
    sealed = examined.report.manifest if record is None else record.manifest
    if record is None and sealed is not None and committed and committed[-1] > sealed.generation:
        path = generation_path(committed[-1])
        mending.do(path, "deleted: it was never swapped in", partial(mending.storage.delete, path))
        record = _record(mending, sealed.generation) if sealed.generation in committed else None
    unswapped = record is not None and examined.report.manifest not in (None, record.manifest)
    if record is not None and (unswapped or len(committed) > 1):
        # A run died after it had committed this generation: before it had swapped it in, or before it had tidied up.
        try:
            mending.do(MANIFEST_NAME, f"generation {record.manifest.generation} is swapped in", _finish(mending))
            if unswapped:
                return
        except IncompleteError:
            damaged |= {file.path for file in listed_files(record.manifest)}
    lost = {MANIFEST_NAME, *damaged} if sealed is None else {file.path for file in listed_files(sealed)} & damaged
    if replaced or lost or record is None:
        if job is None or not whole:
            for path in sorted(lost - {MANIFEST_NAME} | (damaged & {MANIFEST_NAME})):
                mending.leave(path, "it is written from the scored units and the job, which must be mended first")
            return
        newest = max([1, *committed]) if sealed is None else sealed.generation
        _reseal(_Resealing(mending, job, sealed, lost, progress), record, newest)
    elif sealed is not None:
        _write_heads(mending, sealed, damaged)


class _Resealing:
    def __init__(
        self, mending: Mending, job: StoredJob, sealed: Manifest | None, lost: set[str], progress: Progress | None
    ) -> None:
        self.mending = mending
        self.sealed = sealed
        self.lost = lost
        self._job = job
        self._progress = progress

    def stage(self, generation: int) -> Staged:
        """Write the files of the dataset again, of the units and columns that it was sealed with."""
        assert self.mending.epoch is not None  # noqa: S101 - a dry run seals nothing
        job, sealed = self._job, self.sealed
        layers = list(range(1, len(job.layers) + 2)) if sealed is None else job.layers_of(sealed.scorers)
        config, plan = job.config(layers), job.plan
        thresholds: dict[str, Any] = dict(config.thresholds)
        if sealed is not None:
            config = config.model_copy(update={"inputs": sealed.config["inputs"]})
            plan = _first_of(plan, sealed)
            thresholds = {column: each.spec for column, each in sealed.thresholds.items()}
        return stage(
            self.mending.epoch,
            config=config,
            plan=plan,
            scorers=job.columns(layers),
            layers=layers,
            generation=generation,
            thresholds=thresholds,
            progress=self._progress,
        )


def _reseal(sealing: _Resealing, record: GenerationRecord | None, newest: int) -> None:
    mending, sealed, lost = sealing.mending, sealing.sealed, sealing.lost
    path = generation_path(newest)
    if mending.epoch is None:
        for each in sorted(lost | ({path} if record is None else set())):
            mending.do(each, _ANEW, lambda: None)
        if sealed is not None:
            _write_heads(mending, sealed, set())
        return
    staged = sealing.stage(newest)
    if sealed is not None and _equal(staged.manifest, sealed):
        for file in listed_files(sealed):
            if file.path in lost:
                mending.do(file.path, _ANEW, partial(mending.storage.move, f"{staged.folder}/{file.path}", file.path))
        if record is None:
            _put_record(mending, path, GenerationRecord(staged=staged.folder, manifest=sealed))
        _write_heads(mending, sealed, set())
    elif sealed is None:
        # Nothing says what was sealed. It follows from the job, and where the old files lie, these take their place.
        _put_record(mending, path, GenerationRecord(staged=staged.folder, manifest=staged.manifest))
        mending.do(MANIFEST_NAME, _ANEW, _finish(mending))
    else:
        mending.storage.delete_folder(staged.folder)
        staged = sealing.stage(newest + 1)
        what = f"{_ANEW} as generation {newest + 1}: it is not the same as before"
        mending.do(MANIFEST_NAME, what, partial(_commit, mending, staged))


def _commit(mending: Mending, staged: Staged) -> None:
    if mending.epoch is not None:
        commit_generation(mending.epoch, staged.folder, staged.manifest)
        finish_seal(mending.epoch)


def _finish(mending: Mending) -> Callable[[], object]:
    epoch = mending.epoch
    return lambda: epoch and finish_seal(epoch)


def _put_record(mending: Mending, path: str, record: GenerationRecord) -> None:
    mending.do(path, _ANEW, partial(mending.storage.put, path, to_checked(record, indent=2)))


def _write_heads(mending: Mending, sealed: Manifest, damaged: set[str]) -> None:
    """The card and last the manifest, each where it is not what it was."""
    card, manifest = render_card(sealed).encode(), sealed.to_json().encode()
    storage = mending.storage
    if CARD_NAME in damaged or not storage.exists(CARD_NAME):
        mending.do(CARD_NAME, "written anew", partial(storage.put, CARD_NAME, card))
    if not storage.exists(MANIFEST_NAME) or storage.read(MANIFEST_NAME) != manifest:
        what = f"written anew from {generation_path(sealed.generation)}"
        mending.do(MANIFEST_NAME, what, partial(storage.put, MANIFEST_NAME, manifest))


def _record(mending: Mending, generation: int) -> GenerationRecord | None:
    try:
        record = read_generation(mending.storage, generation)
    except DamagedError:
        return None
    return record if record.manifest.generation == generation else None


def _equal(now: Manifest, before: Manifest) -> bool:
    """Whether they say the same of the same data, whichever version of phf wrote them."""
    return now.model_copy(update={"created_by": before.created_by}) == before


def _first_of(plan: Plan, sealed: Manifest) -> Plan:
    """The part of a plan that a dataset was sealed with; it may have been extended since."""
    units, sources = sealed.ledger.units, len(sealed.sources)
    if (units, sources) == (len(plan.units), len(plan.sources)):
        return plan
    first = plan.units.first[: units + 1]
    uris = {source.uri for source in plan.sources[:sources]}
    return Plan(
        plan.sources[:sources],
        plan.entries[:sources],
        Units(first, plan.units.slices[: first[-1]]),
        [each for each in plan.cut if each.source in uris],
        sealed.left_out,
    )
