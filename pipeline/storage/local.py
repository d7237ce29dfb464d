"""Storage on a local disk. Not based on obstore, whose local store does not fsync."""

import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa

from pipeline.storage.base import FileInfo, HashingWriter, Storage
from pipeline.storage.failpoints import failpoint
from scorers.errors import UserError
from scorers.paths import UnsafePathError, irregular_files, place_below

TEMPORARY = ".tmp"


class LocalStorage(Storage):
    """A folder of a POSIX file system with hard links (also NFS)."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.uri = str(self._root)

    def check(self) -> None:  # noqa: D102 - see Storage, here and below
        place = self._root
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(f"{self.uri} is a file; give a folder, or a name that does not exist yet.")
        while not os.access(place, os.F_OK):  # also False if a parent folder may not be entered
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{self.uri} cannot be written: {place} is not a folder that you may write to.")

    def put_if_absent(self, path: str, data: bytes) -> bool:  # noqa: D102
        target = self._target(path)
        if os.path.lexists(target):
            return False
        with self._written(target, data) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                # On NFS the reply to a successful link can get lost; the link count shows it (open(2), O_EXCL).
                if temporary.stat().st_nlink != 2:
                    return False
        _fsync_folder(target.parent)
        return True

    def put(self, path: str, data: bytes) -> None:  # noqa: D102
        target = self._target(path)
        with self._written(target, data) as temporary:
            temporary.replace(target)
        _fsync_folder(target.parent)

    def read(self, path: str) -> bytes:  # noqa: D102
        return place_below(self._root, path).read_bytes()

    def size(self, path: str) -> int | None:  # noqa: D102
        target = place_below(self._root, path)
        return target.stat().st_size if target.is_file() else None

    def list(self, folder: str = "") -> Iterator[FileInfo]:  # noqa: D102
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        for name in self.children(folder):
            if name.endswith("/"):
                yield from self.list(prefix + name)
            else:
                with contextlib.suppress(FileNotFoundError):  # moved since the folder was read
                    yield FileInfo(prefix + name, (self._root / prefix / name).lstat().st_size)

    def children(self, folder: str = "") -> Sequence[str]:  # noqa: D102
        try:
            with os.scandir(place_below(self._root, folder)) as entries:
                names = [name for entry in entries if (name := _name_of(entry)) and not _is_temporary(name)]
        except (FileNotFoundError, UnsafePathError):
            return []
        # Folders sort with their slash, so that walking the tree yields paths in string order.
        return sorted(names)

    @contextlib.contextmanager
    def open_write(self, path: str) -> Iterator[HashingWriter]:  # noqa: D102
        target = self._target(path)
        # Never write into an existing file: it may be linked elsewhere.
        target.unlink(missing_ok=True)
        try:
            with _create(target) as file:
                yield HashingWriter(file)
                failpoint("staged-written")
                _fsync_file(file)
                failpoint("staged-synced")
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        _fsync_folder(target.parent)

    def open_read(self, path: str) -> pa.NativeFile:  # noqa: D102
        return pa.OSFile(str(place_below(self._root, path)))

    def move(self, source: str, target: str) -> None:  # noqa: D102
        old, new = place_below(self._root, source), self._target(target)
        _make_folder(new.parent)
        try:
            old.replace(new)
        except FileNotFoundError:
            if self.size(target) is None:
                raise
        else:
            _fsync_folder(old.parent)
        _fsync_folder(new.parent)

    def delete(self, path: str) -> None:  # noqa: D102
        self._target(path).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:  # noqa: D102
        # An orphaned worker of a killed run may still be writing there; a later run removes what cannot be removed now.
        # Links are removed, not followed.
        shutil.rmtree(place_below(self._root, folder), ignore_errors=True)

    def delete_empty(self, folder: str) -> None:  # noqa: D102
        for parent, _, _ in os.walk(place_below(self._root, folder), topdown=False):
            with contextlib.suppress(OSError):  # not empty
                Path(parent).rmdir()

    def unfinished(self, older_than_s: float) -> Iterator[FileInfo]:  # noqa: D102
        youngest = time.time() - older_than_s
        for parent, _, names in os.walk(self._root):
            for name in filter(_is_temporary, names):
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # it was still in use
                    found = path.lstat()
                    if found.st_mtime <= youngest and stat.S_ISREG(found.st_mode):
                        yield FileInfo(path.relative_to(self._root).as_posix(), found.st_size)

    def irregular(self) -> Iterator[tuple[str, str]]:  # noqa: D102
        return irregular_files(self._root)

    def has_other_links(self, path: str) -> bool:  # noqa: D102
        target = place_below(self._root, path)
        return target.is_file() and target.stat().st_nlink > 1

    def refuse_links(self) -> None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root) as entries:
            for entry in entries:
                place_below(self._root, entry.name)

    def _target(self, path: str) -> Path:
        """The path of a file to create, replace or delete."""
        return place_below(self._root, path, replaced=True)

    @contextlib.contextmanager
    def _written(self, target: Path, data: bytes) -> Iterator[Path]:
        """Write a durable temporary file, which is never listed, beside `target`; delete it unless it was renamed."""
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}{TEMPORARY}")
        try:
            with _create(temporary) as file:
                file.write(data)
                _fsync_file(file)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _name_of(entry: os.DirEntry[str]) -> str:
    """The entry's name, with a slash for a folder; empty for anything but files and folders."""
    if entry.is_dir(follow_symlinks=False):
        return f"{entry.name}/"
    return entry.name if entry.is_file(follow_symlinks=False) else ""


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY)


def _create(path: Path) -> IO[bytes]:
    """Open a new file for writing; create its folders."""
    _make_folder(path.parent)
    return path.open("xb", buffering=1024 * 1024)


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _fsync_folder(folder.parent)


def _fsync_file(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
