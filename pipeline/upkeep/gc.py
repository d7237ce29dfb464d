"""`phf gc`: remove files that nothing committed needs, without disturbing a running driver."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.dataset.manifest import MANIFEST_NAME, no_manifest
from pipeline.job.epoch import STAGING, Epoch
from pipeline.job.plan_files import PLANS, plan_files
from pipeline.job.record import JOB
from pipeline.job.run_status import RunStatus, running_driver
from pipeline.job.staging import committed_part, parts_of
from pipeline.sealing.generations import finish_seal
from pipeline.storage.base import Storage
from pipeline.storage.failures import storage_failures
from pipeline.storage.local import TEMPORARY
from pipeline.storage.open import open_storage
from pipeline.upkeep.orphans import Orphan, Remains, files_of, find_remains
from scorers.errors import IncompleteError, StoppedError, UserError
from scorers.shell import phf


@dataclass(frozen=True)
class Collected:
    """The result of a collection.

    Attributes:
        uri: the output.
        orphans: the files that nothing needs.
        removed: whether the orphans were removed or only listed.
        finished: paths that a dead driver had committed but not moved into place, and that were (or would be) moved.
        irregular: paths of links and the like, which are kept, and what to do about them.
        driver: the running driver, if any; then only the staging folders of older runs are collected.
    """

    uri: str
    orphans: Sequence[Orphan]
    removed: bool
    finished: Sequence[str]
    irregular: Sequence[tuple[str, str]]
    driver: RunStatus | None

    @property
    def size(self) -> int:
        """The total size of the orphans in bytes."""
        return sum(orphan.size for orphan in self.orphans)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        driver = self.driver
        return {
            "dataset": self.uri,
            "removed": self.removed,
            "bytes": self.size,
            "files": sum(orphan.files for orphan in self.orphans),
            "orphans": [
                {"path": each.path, "files": each.files, "bytes": each.size, "why": each.why} for each in self.orphans
            ],
            "finished": list(self.finished),
            "irregular": [{"path": path, "what": what} for path, what in self.irregular],
            "driver": None if driver is None else {"host": driver.host, "pid": driver.pid, "epoch": driver.epoch},
        }


def collect(uri: str, *, delete: bool = False) -> Collected:
    """List the files that nothing committed needs any more; remove them if `delete` is set.

    While a driver is running, only the staging folders of older runs are considered. Otherwise a removal claims an
    epoch, first finishes what a dead driver had committed, and stops as soon as a newer run takes over.

    Raises:
        UserError: there is no job or dataset at `uri`, or a record that decides what is needed is damaged.
        IncompleteError: a disk or store failed, or a folder or file of the output is a link.
        StoppedError: a newer run has claimed the output; the rest can be removed later.
    """
    storage = open_storage(uri)
    with storage_failures(storage):
        _require_job(storage, uri)
        driver = running_driver(storage)
        if driver is not None:
            remains = find_remains(storage, before_epoch=driver.epoch)
            orphans = [each for each in remains.orphans if _is_of_an_epoch(each)]
            for orphan in orphans if delete else ():
                _remove_staged(storage, orphan)
            return Collected(uri, orphans, delete, [], remains.irregular, driver)
        if not delete:
            remains = find_remains(storage)
            return Collected(uri, remains.orphans, False, _unfinished(remains), remains.irregular, None)
        epoch = Epoch.claim(storage)
        remains = find_remains(storage, before_epoch=epoch.number)
        finished = _finish(epoch, remains)
        if finished:
            # The swap may have removed some orphans and created others.
            remains = find_remains(storage, before_epoch=epoch.number)
        for orphan in remains.orphans:
            _remove(epoch, orphan)
        storage.delete_folder(epoch.staging)
        storage.delete_empty(STAGING)
        return Collected(uri, remains.orphans, True, finished, remains.irregular, None)


def _require_job(storage: Storage, uri: str) -> None:
    if not storage.exists(JOB) and not storage.exists(MANIFEST_NAME):
        found = storage.children()
        if "job/" not in found:
            raise no_manifest(uri, found)
        raise UserError(
            f"{uri}/{JOB} is missing; without it, needed files cannot be distinguished. "
            f"Run `{phf('repair', uri)}` first."
        )


def _is_of_an_epoch(orphan: Orphan) -> bool:
    folder, _, name = orphan.path.partition("/")
    return folder == STAGING and name[:8].isdecimal()


def _unfinished(remains: Remains) -> list[str]:
    swap = [MANIFEST_NAME] if remains.unswapped else []
    return [*(part.path for part in remains.unmoved), *swap]


def _finish(epoch: Epoch, remains: Remains) -> list[str]:
    """Finish what a dead driver had committed, as the next driver would."""
    finished = []
    for part in remains.unmoved:
        epoch.check()
        epoch.storage.move(part.staged, part.path)
        finished.append(part.path)
    if remains.unswapped:
        try:
            finish_seal(epoch)
        except IncompleteError:
            return finished  # the generation is damaged; its existing files are kept
        finished.append(MANIFEST_NAME)
    return finished


def _remove_staged(storage: Storage, orphan: Orphan) -> None:
    for path in list(files_of(storage, orphan)):
        # A driver that was just overtaken may have committed the part since the search.
        if committed_part(storage, path) is None:
            storage.delete(path)
    storage.delete_empty(orphan.path)


def _remove(epoch: Epoch, orphan: Orphan) -> None:
    epoch.check()
    storage = epoch.storage
    if orphan.path.startswith(f"{STAGING}/"):
        _remove_staged(storage, orphan)
        return
    if orphan.path.endswith(TEMPORARY):
        storage.delete(orphan.path)
        return
    for path in list(files_of(storage, orphan)):
        # A run that has begun since the search may have written this very file: move it aside, check, then delete.
        epoch.check()
        aside = f"{epoch.staging}/removed/{path}"
        storage.move(path, aside)
        if _is_needed_now(epoch, path):
            if not storage.exists(path):
                storage.move(aside, path)
            epoch.check()
    storage.delete_empty(orphan.path if orphan.path.endswith("/") else orphan.path.rpartition("/")[0])


def _is_needed_now(epoch: Epoch, path: str) -> bool:
    try:
        epoch.check()
    except StoppedError:
        return True
    if path.startswith(f"{PLANS}/"):
        return path in plan_files(epoch.storage)
    return any(part.path == path for part in parts_of(epoch.storage, path.rpartition("/")[2]))
