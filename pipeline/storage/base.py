"""The storage interface: every byte below a dataset is written through it, on a local disk or an object store.

The commit protocol relies on three guarantees:

- *put if absent*: of any number of processes that create the same path, one succeeds, and none sees a partial file;
- *durable*: once a call has returned, its data is flushed to the disk (file and folder) or accepted by the store;
- *move*: atomic, and repeatable after a crash.

A path never leaves the root or crosses a link below it: a link itself may be replaced or deleted, but nothing is read
or written through it (`scorers.paths`). The root may be a link.

Every failure of a disk or store, including obstore's errors, is an `OSError` with an `errno` (`FileNotFoundError` for a
missing file); an `OSError` without one comes from pyarrow and means that the content is not valid Parquet.
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
    """A file below a storage's root: its path relative to the root, with `/`, and its size in bytes."""

    path: str
    size: int


class HashingWriter(io.RawIOBase):
    """A binary file that counts and hashes what is written; wrap it in `pa.PythonFile(writer, mode="w")` for pyarrow.

    Closing it does not close the underlying file; the storage that opened it does.
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
    """A folder on a disk or a prefix of an object store. Paths are relative to it, with `/`. Instances can be pickled.

    Methods that take a path raise `UnsafePathError`, an `OSError`, if it leaves the root or crosses a link.

    Attributes:
        uri: the URI that it was opened with; for a local folder the absolute path, which is valid in any process.
    """

    uri: str

    @abstractmethod
    def check(self) -> None:
        """Check cheaply, without writing, that the storage can be used.

        Raises:
            UserError: it is not a folder, cannot be written, or cannot be reached.
            IncompleteError: the store answers, but is temporarily unavailable.
        """

    @abstractmethod
    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create a file atomically and durably; return False and change nothing if it exists.

        On an object store, a retried request may find the file of its own first attempt, so False does not prove that
        another process wrote the file. Callers that need to know compare the content.
        """

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Create or replace a file atomically and durably."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the content of a file; `FileNotFoundError` if it does not exist."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Size of a file in bytes, or None if it does not exist."""

    def exists(self, path: str) -> bool:
        """Whether a file exists."""
        return self.size(path) is not None

    @abstractmethod
    def list(self, folder: str = "") -> Iterator[FileInfo]:
        """Yield all regular files at any depth below a folder, sorted by path; none if the folder does not exist."""

    @abstractmethod
    def children(self, folder: str = "") -> Sequence[str]:
        """Names of the regular files and folders directly in a folder, sorted; names of folders end in `/`."""

    @abstractmethod
    def open_write(self, path: str) -> AbstractContextManager[HashingWriter]:
        """Stream into a file, which is durable when the context is left, and removed if it raises.

        Not atomic: a crash may leave a partial file. Use it only below `staging/`, then `move`.
        """

    @abstractmethod
    def open_read(self, path: str) -> pa.NativeFile:
        """Open a seekable file for pyarrow; `FileNotFoundError` if it does not exist."""

    @abstractmethod
    def move(self, source: str, target: str) -> None:
        """Move a file, replacing the target; do nothing if only the target exists.

        Raises:
            FileNotFoundError: neither file exists.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete a file; do nothing if it does not exist."""

    @abstractmethod
    def delete_folder(self, folder: str) -> None:
        """Delete a folder with all files below it; do nothing if it does not exist."""

    def delete_empty(self, folder: str) -> None:
        """Delete a folder and its subfolders unless they contain files; do nothing on object stores."""
        return

    def unfinished(self, older_than_s: float) -> Iterator[FileInfo]:
        """Yield temporary files that dead processes have left; other methods do not list them.

        Args:
            older_than_s: least seconds since the last write; a younger file may be in use.
        """
        yield from ()

    def irregular(self) -> Iterator[tuple[str, str]]:
        """Yield path and advice for entries that are neither file nor folder, such as links, which `list` omits."""
        yield from ()

    def has_other_links(self, path: str) -> bool:
        """Whether a file has other names (hard links), under which it stays when it is deleted here."""
        return False

    def refuse_links(self) -> None:
        """Refuse a root that directly contains a link.

        Raises:
            UnsafePathError: names the link.
        """
        return
