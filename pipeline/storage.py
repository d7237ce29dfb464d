"""The only path to durability: every byte under a dataset is written through here, on a local disk or an object store.

Three promises that the commit protocol stands on:

- *put if absent*: of any number of processes that create the same path, one succeeds, and nobody sees half a file;
- *durable*: what a call returned from has been flushed to the disk (file and folder), or accepted by the store;
- *move*: atomic, and repeatable after a crash.

A path never leads out of the root, nor over a link below it: what is one is replaced or deleted itself, and nothing is
read or written through it (`scorers.paths`). The root may be a link.

Every failure of a disk or a store is an `OSError` with an `errno` (`FileNotFoundError` where nothing is there), of
obstore's too; one without is pyarrow's, of a content that is no Parquet.
obstore's own local store does not fsync, hence the local one here; `pipeline.object_storage` is opened through here
alone.
"""

import contextlib
import hashlib
import io
import os
import secrets
import shutil
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from pipeline.failpoints import failpoint
from scorers.errors import UserError
from scorers.paths import UnsafePathError, irregular_files, place_below
from scorers.printing import refuse_secret

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

OBJECT_SCHEMES = ("s3", "gs", "az")
TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """A file below a storage's root: its path relative to it, with `/`, and its size in bytes."""

    path: str
    size: int


class HashingWriter(io.RawIOBase):
    """A binary file that counts and hashes what is written; wrap it in `pa.PythonFile(writer, mode="w")` for pyarrow.

    Closing it does not end the file: the storage that opened it does.
    """

    def __init__(self, target: IO[bytes]) -> None:
        super().__init__()
        self._target = target
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of everything written so far."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def write(self, data: "ReadableBuffer", /) -> int:
        """Append all of `data`."""
        view = memoryview(data).cast("B")
        self._target.write(view)
        self._hash.update(view)
        self.size += view.nbytes
        return view.nbytes


class Storage(ABC):
    """A folder on a disk or a prefix of an object store. Paths are relative to it, with `/`. It can be pickled.

    Methods that take a path raise `UnsafePathError`, an `OSError`, for one that leads out of the root or over a link.

    Attributes:
        uri: what it was opened with; for a local folder its absolute path, so that it means the same in any process.
    """

    uri: str

    @staticmethod
    def open(uri: str) -> "Storage":
        """The storage at a local path, `file://`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://…`.

        Object stores take their credentials from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …) or from
        the machine's role. Nothing is read or written yet.

        Raises:
            UserError: another scheme, or a URI that its store does not understand or that holds a secret.
        """
        scheme, separator, _ = uri.partition("://")
        if not uri:
            raise UserError("The output is empty; give a folder or a URI such as s3://bucket/prefix.")
        refuse_secret(uri, "output")
        if not separator:
            return LocalStorage(Path(uri))
        if scheme == "file":
            return LocalStorage(Path(unquote(urlsplit(uri).path)))
        if scheme in OBJECT_SCHEMES:
            from pipeline.object_storage import ObjectStorage

            return ObjectStorage(uri.rstrip("/"))
        known = ", ".join(f"{each}://" for each in OBJECT_SCHEMES)
        raise UserError(f"{uri}: output cannot be written to {scheme}://; use a local folder or one of {known}.")

    @abstractmethod
    def check(self) -> None:
        """Find out cheaply, writing nothing, whether this place can be used.

        Raises:
            UserError: it is not a folder, cannot be written, or cannot be reached.
            IncompleteError: it is a store that is there, but serves nobody for now.
        """

    @abstractmethod
    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create a file, whole and durable; False, changing nothing, if there is one already.

        On an object store, a retried request may find its own first attempt: False does not prove that somebody else
        wrote the file. Callers to whom that matters compare the content.
        """

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Create or replace a file, whole and durable."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The content of a file; `FileNotFoundError` if there is none."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Size of a file in bytes, or None if there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is a file."""
        return self.size(path) is not None

    @abstractmethod
    def list(self, folder: str = "") -> Iterator[FileInfo]:
        """All regular files at any depth below a folder, sorted by path; none if there is no such folder."""

    @abstractmethod
    def children(self, folder: str = "") -> Sequence[str]:
        """Names of regular files and folders directly in a folder, sorted; those of folders end in `/`."""

    @abstractmethod
    def open_write(self, path: str) -> AbstractContextManager[HashingWriter]:
        """Stream into a file, which is durable when the block ends well and removed when it raises.

        Not atomic: half a file may be left by a crash. Use it below `staging/` only, then `move`.
        """

    @abstractmethod
    def open_read(self, path: str) -> pa.NativeFile:
        """A seekable file for pyarrow; `FileNotFoundError` if there is none."""

    @abstractmethod
    def move(self, source: str, target: str) -> None:
        """Move a file, replacing the target; does nothing when it has been done already.

        Raises:
            FileNotFoundError: neither of the two is there.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete a file; does nothing if there is none."""

    @abstractmethod
    def delete_folder(self, folder: str) -> None:
        """Delete all files below a folder, and the folder; does nothing if there is none."""

    def delete_empty(self, folder: str) -> None:
        """Delete a folder and those below it, but none that holds a file; does nothing where folders are but names."""
        return

    def unfinished(self, older_than_s: float) -> Iterator[FileInfo]:
        """Temporary files that a process left behind when it died while it wrote; nothing else lists them.

        Args:
            older_than_s: seconds since anything was written to them; a younger one may be in use.
        """
        yield from ()

    def irregular(self) -> Iterator[tuple[str, str]]:
        """What is neither file nor folder, such as a link: its path, and what to do about it; nothing else lists it."""
        yield from ()

    def refuse_links(self) -> None:
        """Refuse a root in which a folder or file is a link, before anything is written.

        Raises:
            UnsafePathError: names it.
        """
        return


class LocalStorage(Storage):
    """A folder of a POSIX file system with hard links (also NFS)."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.uri = str(self._root)

    def check(self) -> None:  # noqa: D102 - see Storage, here and below
        place = self._root
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(f"{self.uri} is a file; give a folder, or a name that does not exist yet.")
        while not os.access(place, os.F_OK):  # False too where a folder above may not be entered
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
                # Over NFS the answer to a link that worked can get lost; the number of links tells (open(2), O_EXCL).
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
                with contextlib.suppress(FileNotFoundError):  # moved by somebody since the folder was read
                    yield FileInfo(prefix + name, (self._root / prefix / name).lstat().st_size)

    def children(self, folder: str = "") -> Sequence[str]:  # noqa: D102
        try:
            with os.scandir(place_below(self._root, folder)) as entries:
                names = [name for entry in entries if (name := _name_of(entry)) and not _is_temporary(name)]
        except (FileNotFoundError, UnsafePathError):
            return []
        # A folder sorts with its slash, so that walking the tree yields paths in the order of their strings.
        return sorted(names)

    @contextlib.contextmanager
    def open_write(self, path: str) -> Iterator[HashingWriter]:  # noqa: D102
        target = self._target(path)
        # What lies there may be no file that is ours alone.
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
        # An orphan of a killed run may still be writing there: what cannot be removed now is removed by a later run.
        # Links in it are removed themselves.
        shutil.rmtree(place_below(self._root, folder), ignore_errors=True)

    def delete_empty(self, folder: str) -> None:  # noqa: D102
        for parent, _, _ in os.walk(place_below(self._root, folder), topdown=False):
            with contextlib.suppress(OSError):  # something is in it
                Path(parent).rmdir()

    def unfinished(self, older_than_s: float) -> Iterator[FileInfo]:  # noqa: D102
        youngest = time.time() - older_than_s
        for parent, _, names in os.walk(self._root):
            for name in filter(_is_temporary, names):
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # it was in use after all
                    found = path.lstat()
                    if found.st_mtime <= youngest and stat.S_ISREG(found.st_mode):
                        yield FileInfo(path.relative_to(self._root).as_posix(), found.st_size)

    def irregular(self) -> Iterator[tuple[str, str]]:  # noqa: D102
        return irregular_files(self._root)

    def refuse_links(self) -> None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root) as entries:
            for entry in entries:
                place_below(self._root, entry.name)

    def _target(self, path: str) -> Path:
        """Where a file is created, replaced or deleted."""
        return place_below(self._root, path, replaced=True)

    @contextlib.contextmanager
    def _written(self, target: Path, data: bytes) -> Iterator[Path]:
        """A durable file with `data` beside `target`, which nobody lists; gone afterwards, unless it was renamed."""
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}{TEMPORARY}")
        try:
            with _create(temporary) as file:
                file.write(data)
                _fsync_file(file)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _name_of(entry: os.DirEntry[str]) -> str:
    """Its name, with a slash for a folder; empty for what is neither that nor a file."""
    if entry.is_dir(follow_symlinks=False):
        return f"{entry.name}/"
    return entry.name if entry.is_file(follow_symlinks=False) else ""


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY)


def _create(path: Path) -> IO[bytes]:
    """Open a new file for writing, with its folders."""
    _make_folder(path.parent)
    return path.open("xb", buffering=1024 * 1024)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably."""
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
