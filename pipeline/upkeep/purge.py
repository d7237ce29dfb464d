"""`phf purge`: remove documents from a labelled dataset and from what was built from it; tombstones stay.

A purge first writes its tombstones, which the job's record then counts: from there on no run labels the records again.
Then it replaces the scored units that hold them, seals a generation from these, deletes the older ones, and last counts
itself as finished. If it dies, the same command, or one without ids, continues; until then other commands refuse the
dataset, and readers find one whole generation: the old or the new one.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pipeline.dataset.derived import dataset_identity
from pipeline.dataset.manifest import MANIFEST_NAME, Manifest
from pipeline.job.epoch import STAGING, Epoch
from pipeline.job.purged import Key, purged_among, read_identities, write_tombstones
from pipeline.job.record import JOB, StoredJob, load_job, read_job
from pipeline.job.run_status import running_driver
from pipeline.job.staging import clear_staging
from pipeline.job.unit_store import UnitStore
from pipeline.sealing.current import contents_as_sealed, current_manifest
from pipeline.sealing.generations import finish_seal, generations, listed_files, read_generation
from pipeline.sealing.seal import seal
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import to_checked
from pipeline.storage.failpoints import failpoint
from pipeline.storage.failures import storage_failures
from pipeline.storage.open import open_storage
from pipeline.upkeep.purge_keys import Found, check_source, keys_of_ids, survey, units_of
from pipeline.upkeep.purge_stores import Derived, delete_stores, find_derived
from pipeline.upkeep.purge_units import UnitPurger
from scorers.errors import IncompleteError, UserError
from scorers.paths import escape_path
from scorers.shell import phf

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """The documents to remove: all rows with one of `ids`, and the records at `positions` of `source`."""

    ids: frozenset[str] = frozenset()
    source: str | None = None
    positions: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Purged:
    """The result of a purge; holds no id.

    Attributes:
        uri: the dataset.
        dry_run: whether nothing was changed.
        found: where the records were (or are, in a dry run).
        missing_ids: ids that are in no row of a committed unit.
        continued: whether an interrupted purge was finished.
        total: all records that were ever purged here.
        parts: number of parts of units that were rewritten.
        before, after: the manifests before and after; None if nothing is sealed, equal if nothing changed.
        derived: token stores that were (or would be) deleted, and tokenizers, which are kept.
        shared: removed files that have other hard links, and so still exist elsewhere.
    """

    uri: str
    dry_run: bool
    found: Found
    missing_ids: int
    continued: bool
    total: int
    parts: int
    before: Manifest | None
    after: Manifest | None
    derived: Derived
    shared: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        found = self.found
        return {
            "dataset": self.uri,
            "dry_run": self.dry_run,
            "documents": len(found.rows),
            "quarantined": len(found.quarantined),
            "texts_in_quarantine": found.texts,
            "not_labelled_yet": len(found.unlabelled),
            "already_purged": len(found.already),
            "ids_not_found": self.missing_ids,
            "units": len(found.units),
            "parts": self.parts,
            "continued": self.continued,
            "purged_in_all": self.total,
            "generation": None if self.after is None else self.after.generation,
            "stores": [str(each) for each in self.derived.stores],
            "tokenizers_kept": [str(each) for each in self.derived.tokenizers],
            "links": [str(each) for each in self.derived.links],
            "other_hard_links": list(self.shared),
        }


def purge(uri: str, request: Request, progress: Progress | None = None, *, dry_run: bool = False) -> Purged:
    """Remove documents from a dataset, or finish an interrupted purge if the request is empty.

    Rows are removed from the scored units of every layer and from the sealed dataset, quarantined texts from both, and
    the token stores that hold the documents are deleted. Thresholds that are percentiles are computed again.

    Args:
        uri: the output of `phf label`, sealed or not.
        request: the documents.
        progress: called after every unit while sealing.
        dry_run: only count.

    Raises:
        UserError: there is no job, a run is at work on it, or the request names a source or position that does not
            exist. Nothing was changed.
        IncompleteError: a unit is damaged, or a disk or store failed.
        StoppedError: a newer run has claimed the output.
    """
    storage = open_storage(uri)
    with storage_failures(storage):
        job = _load(storage)
        _refuse_running(storage)
        if storage.exists(MANIFEST_NAME) and not generations(storage):
            raise IncompleteError(f"{storage.uri} is damaged. Run `{phf('repair', storage.uri)}` first; then purge.")
        if request.source is not None:
            check_source(job.plan, request.source)
            _survey(job, {(request.source, position) for position in request.positions})
        if dry_run:
            keys, missing = _keys(job, request)
            found = _survey(job, keys)
            before = _sealed(storage)
            derived = find_derived(storage.uri, _identities(job, before), found.hashes)
            return Purged(uri, True, found, missing, False, len(job.purged | keys), 0, before, before, derived)
        return _purge(storage, uri, request, progress)


def _purge(storage: Storage, uri: str, request: Request, progress: Progress | None) -> Purged:
    epoch = Epoch.claim(storage)
    # Finish what a dead driver has committed, then delete what else it staged.
    before = finish_seal(epoch)
    clear_staging(epoch)
    job = load_job(storage)
    keys, missing = _keys(job, request)
    found = _survey(job, keys)
    continued = job.record.is_purging
    if keys - job.purged:
        job = _bury(epoch, job, keys - job.purged, before)
    # Also what an interrupted purge has left, and what a driver that was stopped committed after an earlier one.
    left = survey(job, job.purged)
    if not job.record.is_purging and (left.rows or left.quarantined):
        continued = True
        _write_record(epoch, purged=job.record.purges - 1)
        job = load_job(storage)
    if continued:
        left.already = found.already
        found = left
    after, derived, purger = before, Derived(), UnitPurger(epoch, job)
    if job.record.is_purging:
        # Stores go before the rows, by whose texts they are found, and again at the end: a run may build one meanwhile.
        derived = find_derived(storage.uri, _identities(job, before), left.hashes)
        delete_stores(derived.stores)
        purger.run()
        after = _seal_again(epoch, job, before, purger.shared, progress)
        _delete_unlisted(epoch, after)
        later = find_derived(storage.uri, _identities(job, before), left.hashes)
        delete_stores(later.stores)
        derived = Derived(sorted({*derived.stores, *later.stores}), later.tokenizers, later.links)
        _write_record(epoch, purged=job.record.purges)
    storage.delete_folder(epoch.staging)
    storage.delete_empty(STAGING)
    total, parts = len(job.purged), purger.rewritten
    shared = tuple(purger.shared)
    return Purged(uri, False, found, missing, continued, total, parts, before, after, derived, shared)


def _seal_again(
    epoch: Epoch, job: StoredJob, before: Manifest | None, shared: list[str], progress: Progress | None
) -> Manifest | None:
    """Seal a generation without the documents, unless the sealed one is without them."""
    storage = epoch.storage
    if before is None or _tombstones(job, before) == before.ledger.purged:
        return before
    shared += [file.path for file in listed_files(before) if storage.has_other_links(file.path)]
    return seal(epoch, contents_as_sealed(job, before), generation=before.generation + 1, progress=progress)


def _load(storage: Storage) -> StoredJob:
    try:
        return load_job(storage)
    except UserError:
        if "units/" not in storage.children():
            current_manifest(storage)  # a copy without units has a message of its own
        raise


def _refuse_running(storage: Storage) -> None:
    driver = running_driver(storage)
    if driver is not None:
        raise UserError(
            f"{storage.uri} is being labelled on {driver.host}, process {driver.pid}. Stop that run, or let it finish; "
            "then purge. Nothing was changed."
        )


def _keys(job: StoredJob, request: Request) -> tuple[set[Key], int]:
    keys, seen = keys_of_ids(job, request.ids) if request.ids else (set(), 0)
    if request.source is not None:
        keys |= {(request.source, position) for position in request.positions}
    return keys, len(request.ids) - seen


def _survey(job: StoredJob, keys: Collection[Key]) -> Found:
    found = survey(job, keys)
    if found.nowhere:
        source, position = min(found.nowhere)
        raise UserError(
            f"There is no record at position {position} of {escape_path(source)}. A position is the record's index, or "
            "its byte offset in a plain .jsonl file. Nothing was changed."
        )
    return found


def _bury(epoch: Epoch, job: StoredJob, keys: Collection[Key], sealed: Manifest | None) -> StoredJob:
    """Write the tombstones, then the job's record that counts them: the commit point."""
    number = job.record.purges + 1
    epoch.check()
    write_tombstones(epoch.storage, number, keys, None if sealed is None else dataset_identity(sealed))
    failpoint("tombstones-written")
    _write_record(epoch, purges=number)
    failpoint("purge-begun")
    return load_job(epoch.storage)


def _write_record(epoch: Epoch, **counts: int) -> None:
    record = read_job(epoch.storage)
    if record is not None:
        changed = record.model_copy(update={"version": 2, **counts})
        epoch.check()
        epoch.storage.put(JOB, to_checked(changed, indent=2))


def _tombstones(job: StoredJob, sealed: Manifest) -> int:
    """The number of tombstones in the units that a generation is made of."""
    store = UnitStore(job.storage)
    units = [unit for unit in units_of(job.plan, job.purged) if unit < sealed.ledger.units]
    return sum(purged_among(store.read(unit).quarantined) for unit in units)


def _delete_unlisted(epoch: Epoch, manifest: Manifest | None) -> None:
    """Delete all files that may still hold a removed text: of other generations, and of processes that died."""
    storage = epoch.storage
    listed = set() if manifest is None else {file.path for file in listed_files(manifest)}
    for folder in ("data", "ledger"):
        for info in list(storage.list(folder)):
            if info.path not in listed:
                epoch.check()
                storage.delete(info.path)
        storage.delete_empty(folder)
    for info in list(storage.unfinished(0.0)):
        epoch.check()
        storage.delete(info.path)
    if left := [info.path for info in storage.list(STAGING) if not info.path.startswith(epoch.staging)]:
        raise IncompleteError(f"{storage.uri}/{left[0]} cannot be deleted. Run the same command again.")


def _sealed(storage: Storage) -> Manifest | None:
    committed = generations(storage)
    return read_generation(storage, committed[-1]).manifest if committed else None


def _identities(job: StoredJob, *manifests: Manifest | None) -> set[str]:
    """The identities that the dataset has now and had before its purges."""
    now = {dataset_identity(manifest) for manifest in manifests if manifest is not None}
    return now | read_identities(job.storage, job.record.purges)
