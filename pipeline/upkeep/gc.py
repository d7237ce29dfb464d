"""`phf gc`: remove what no committed thing needs; never anything that one does, and never under a running driver."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.dataset.manifest import MANIFEST_NAME, no_manifest
from pipeline.job.epoch import STAGING, Epoch
from pipeline.job.plan_files import PLANS, plan_files
from pipeline.job.record import JOB
from pipeline.job.staging import committed_part, parts_of
from pipeline.job.status import RunStatus, read_status
from pipeline.sealing.generations import finish_seal
from pipeline.storage.base import Storage
from pipeline.storage.failures import storage_failures
from pipeline.storage.local import TEMPORARY
from pipeline.storage.open import open_storage
from pipeline.upkeep.orphans import Orphan, Remains, files_of, find_remains
from scorers.errors import IncompleteError, StoppedError, UserError
from scorers.shell import phf

# A driver that has been silent for longer than this is not running any more; it writes every few seconds.
_SILENT_S = 30.0


@dataclass(frozen=True)
class Collected:
    """What was found.

    Attributes:
        uri: the output.
        orphans: what nobody needs, and what was removed of it.
        removed: whether they were removed; otherwise they are only listed.
        finished: what a dead driver had committed and not moved to its place, and what was done about that.
        irregular: paths of links and the like, which are left, and what to do about them.
        driver: that is at work, which keeps all but the staging of older runs from being looked at.
    """

    uri: str
    orphans: Sequence[Orphan]
    removed: bool
    finished: Sequence[str]
    irregular: Sequence[tuple[str, str]]
    driver: RunStatus | None

    @property
    def size(self) -> int:
        """Bytes of all orphans."""
        return sum(orphan.size for orphan in self.orphans)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
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
    """List what no committed thing needs any more, or remove it.

    While a driver is at work only the staging folders of older runs are looked at. Otherwise a removal claims an epoch,
    first finishes what a dead driver had committed, and stops as soon as a newer run takes over.

    Args:
        uri: the output of `phf label`.
        delete: remove it.

    Raises:
        UserError: there is no job or dataset, or what it needs is damaged.
        IncompleteError: a disk or store failed, or a folder or file of the output is a link.
        StoppedError: a newer run has claimed the output; what is left can be removed later.
    """
    storage = open_storage(uri)
    with storage_failures(storage):
        _check_is_ours(storage, uri)
        driver = _driver_at_work(storage)
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
            # A swap has removed some of it by itself, and may have left more.
            remains = find_remains(storage, before_epoch=epoch.number)
        for orphan in remains.orphans:
            _remove(epoch, orphan)
        storage.delete_folder(epoch.staging)
        storage.delete_empty(STAGING)
        return Collected(uri, remains.orphans, True, finished, remains.irregular, None)


def _check_is_ours(storage: Storage, uri: str) -> None:
    if not storage.exists(JOB) and not storage.exists(MANIFEST_NAME):
        found = storage.children()
        if "job/" not in found:
            raise no_manifest(uri, exists=bool(found), labelling=False)
        raise UserError(
            f"{uri}/{JOB} is missing, and without it nobody knows what is needed. Try `{phf('repair', uri)}`."
        )


def _driver_at_work(storage: Storage) -> RunStatus | None:
    run = read_status(storage)
    if run is None or run.state in {"stopped", "incomplete", "done"}:
        return None
    silent_s = (datetime.now(UTC) - run.written).total_seconds()
    return run if silent_s < _SILENT_S else None


def _is_of_an_epoch(orphan: Orphan) -> bool:
    folder, _, name = orphan.path.partition("/")
    return folder == STAGING and name[:8].isdecimal()


def _unfinished(remains: Remains) -> list[str]:
    swap = [MANIFEST_NAME] if remains.unswapped else []
    return [*(part.path for part in remains.unmoved), *swap]


def _finish(epoch: Epoch, remains: Remains) -> list[str]:
    """Do what a dead driver had committed to do, as the next one would."""
    finished = []
    for part in remains.unmoved:
        epoch.check()
        epoch.storage.move(part.staged, part.path)
        finished.append(part.path)
    if remains.unswapped:
        try:
            finish_seal(epoch)
        except IncompleteError:
            return finished  # it is damaged, and what is there of it was kept
        finished.append(MANIFEST_NAME)
    return finished


def _remove_staged(storage: Storage, orphan: Orphan) -> None:
    for path in list(files_of(storage, orphan)):
        # A driver that was overtaken in this very moment may have committed it since it was found.
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
        # A run that has begun since it was found may write the very same file, and need it: it is put aside first.
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
