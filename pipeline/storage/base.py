"""The only path to durability: every byte under a dataset is written through here, on a local disk or an object store.

Three promises that the commit protocol stands on:

- *put if absent*: of any number of processes that create the same path, one succeeds, and nobody sees half a file;
- *durable*: what a call returned from has been flushed to the disk (file and folder), or accepted by the store;
- *move*: atomic, and repeatable after a crash.

A path never leads out of the root, nor over a link below it: what is one is replaced or deleted itself, and nothing is
read or written through it (`scorers.paths`). The root may be a link.

Every failure of a disk or a store is an `OSError` with an `errno` (`FileNotFoundError` where nothing is there), of
obstore's too; one without is pyarrow's, of a content that is no Parquet.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


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
