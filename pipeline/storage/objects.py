"""Storage in object stores, through obstore.

A request that fails temporarily (503 SlowDown, 500, …) or loses its connection is retried with growing pauses for
`PHF_STORE_RETRY_S` seconds (120); then it raises an `OSError`. obstore does most of the retries; responses that are cut
off in the middle are retried here.
"""

import contextlib
import errno
import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cached_property, partial
from typing import IO, TYPE_CHECKING, Any, TypeVar

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
from obstore.store import from_url

from pipeline.storage.base import FileInfo, HashingWriter, Storage
from pipeline.storage.failpoints import failpoint
from scorers.errors import IncompleteError, UserError
from scorers.paths import check_parts

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

Result = TypeVar("Result")

RETRY_VARIABLE = "PHF_STORE_RETRY_S"
_RETRY_S = 120.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 10.0
# The HTTP status in obstore's messages; and the 4xx statuses that are temporary.
_STATUS = re.compile(r"status code: (\d{3})")
_TOO_BUSY = (408, 429)
_SPOOL_BYTES = 16 * 1024 * 1024


class ObjectStorage(Storage):
    """A prefix of an object store that supports create-if-absent (S3, GCS, Azure and most compatible stores)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            _ = self._store
        except (BaseError, ValueError) as error:
            raise UserError(f"Cannot use {uri}: {_first_line(error)}.") from None

    def __reduce__(self) -> tuple[type["ObjectStorage"], tuple[str]]:
        return (ObjectStorage, (self.uri,))

    @cached_property
    def _store(self) -> "ObjectStore":
        # Limit the time, not the number of retries.
        return self._connect({"max_retries": 1000, "retry_timeout": timedelta(seconds=_retry_seconds())})

    def _connect(self, retries: "RetryConfig") -> "ObjectStore":
        client: ClientConfig = {"timeout": timedelta(minutes=2), "connect_timeout": timedelta(seconds=10)}
        retries = {"backoff": {"max_backoff": timedelta(seconds=_MAX_PAUSE_S)}, **retries}
        config: dict[str, Any] = {}
        if self.uri.startswith("s3://"):
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            if endpoint:
                config["endpoint"] = endpoint
                client["allow_http"] = endpoint.startswith("http://")
        return from_url(self.uri, client_options=client, retry_config=retries, **config)

    def check(self) -> None:  # noqa: D102 - see Storage, here and below
        try:
            self._look()
        except OSError as error:
            raise UserError(
                f"{error.strerror or error}. Check the bucket's name, the credentials (environment or machine role), "
                "and the endpoint."
            ) from None

    def _look(self) -> None:
        try:
            # Fail fast at an address that does not answer.
            with _as_os_error(self.uri):
                obstore.list_with_delimiter(self._connect({"max_retries": 2}))
        except _TemporaryError as error:
            if not error.answered:
                raise
            try:
                self.children()
            except OSError as still:
                raise IncompleteError(
                    f"{still.strerror or still}. The same command continues once the store answers again."
                ) from None

    def put_if_absent(self, path: str, data: bytes) -> bool:  # noqa: D102
        try:
            self._try(path, lambda: obstore.put(self._store, path, data, mode="create", use_multipart=False))
        except FileExistsError:
            return False
        return True

    def put(self, path: str, data: bytes) -> None:  # noqa: D102
        self._try(path, lambda: obstore.put(self._store, path, data, use_multipart=False))

    def read(self, path: str) -> bytes:  # noqa: D102
        return self._try(path, lambda: obstore.get(self._store, path).bytes().to_bytes())

    def size(self, path: str) -> int | None:  # noqa: D102
        try:
            return self._try(path, lambda: obstore.head(self._store, path)["size"])
        except FileNotFoundError:
            return None

    def list(self, folder: str = "") -> Iterator[FileInfo]:  # noqa: D102
        chunks = self._try(folder, lambda: list(obstore.list(self._store, folder.rstrip("/") or None)))
        yield from sorted(FileInfo(meta["path"], meta["size"]) for chunk in chunks for meta in chunk)

    def children(self, folder: str = "") -> Sequence[str]:  # noqa: D102
        found = self._try(folder, lambda: obstore.list_with_delimiter(self._store, folder.rstrip("/") or None))
        names = [path.rpartition("/")[2] + "/" for path in found["common_prefixes"]]
        # Web consoles and some servers create an empty object for a folder.
        files = [meta["path"] for meta in found["objects"] if meta["path"] != folder.rstrip("/")]
        return sorted([*names, *(path.rpartition("/")[2] for path in files)])

    @contextlib.contextmanager
    def open_write(self, path: str) -> Iterator[HashingWriter]:  # noqa: D102
        # Spool the data: a multipart upload that is never completed would stay in the bucket and be billed.
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            yield HashingWriter(spool)
            failpoint("staged-written")
            self._try(path, lambda: _upload(self._store, path, spool))
            failpoint("staged-synced")

    def open_read(self, path: str) -> pa.NativeFile:  # noqa: D102
        reader = self._try(path, lambda: obstore.open_reader(self._store, path))
        return pa.PythonFile(_ObjectReader(reader, partial(self._try, path)), mode="r")

    def move(self, source: str, target: str) -> None:  # noqa: D102
        check_parts(target)
        try:
            self._try(source, lambda: obstore.copy(self._store, source, target))
        except FileNotFoundError:
            if not self.exists(target):
                raise
        else:
            self.delete(source)

    def delete(self, path: str) -> None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError):
            self._try(path, lambda: obstore.delete(self._store, path))

    def delete_folder(self, folder: str) -> None:  # noqa: D102
        paths = [info.path for info in self.list(folder)]
        with contextlib.suppress(FileNotFoundError):
            if paths:
                self._try(folder, lambda: obstore.delete(self._store, paths))

    def _try(self, path: str, act: Callable[[], Result]) -> Result:
        """Run an idempotent operation; retry temporary failures for `PHF_STORE_RETRY_S` seconds."""
        check_parts(path)
        end, pause = time.monotonic() + _retry_seconds(), _FIRST_PAUSE_S
        while True:
            try:
                with _as_os_error(self._name(path)):
                    return act()
            except _TemporaryError as error:
                if time.monotonic() + pause > end:
                    raise OSError(errno.EIO, error.what) from None
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)

    def _name(self, path: str) -> str:
        return f"{self.uri}/{path}"


class _ObjectReader(io.RawIOBase):
    """obstore's reader as a Python file whose errors are `OSError`."""

    def __init__(self, reader: Any, attempt: Callable[[Callable[[], bytes]], bytes]) -> None:
        super().__init__()
        self._reader = reader
        self._attempt = attempt

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        position: int = self._reader.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._reader.tell()
        return position

    def read(self, size: int | None = -1, /) -> bytes:
        position = self.tell()

        def act() -> bytes:
            self._reader.seek(position)
            return bytes(self._reader.read(None if size is None or size < 0 else size))

        return self._attempt(act)


def _upload(store: "ObjectStore", path: str, spool: IO[bytes]) -> None:
    spool.seek(0)
    try:
        obstore.put(store, path, spool)
    except FileNotFoundError as error:
        # The response to the completion of a multipart upload was lost, and the retry found no such upload. Start over.
        raise GenericError(*error.args) from None


class _TemporaryError(OSError):
    """A temporary failure of the store or the connection; `answered` if the store itself reported it."""

    def __init__(self, what: str, *, answered: bool) -> None:
        super().__init__(errno.EIO, what)
        self.what = what
        self.answered = answered


def _retry_seconds() -> float:
    return float(os.environ.get(RETRY_VARIABLE, _RETRY_S))


@contextlib.contextmanager
def _as_os_error(name: str) -> Iterator[None]:
    try:
        yield
    except AlreadyExistsError:
        raise FileExistsError(f"{name} exists already") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist") from None
    except GenericError as error:
        status = _STATUS.search(str(error))
        what, answer = f"Cannot access {name}: {_first_line(error)}", int(status[1]) if status else 0
        if 400 <= answer < 500 and answer not in _TOO_BUSY:
            raise OSError(errno.EIO, what) from None
        raise _TemporaryError(what, answered=answer > 0) from None
    except BaseError as error:
        raise OSError(errno.EIO, f"Cannot access {name}: {_first_line(error)}") from None
    except OSError as error:  # of obstore's files
        raise _TemporaryError(f"Cannot access {name}: {_first_line(error)}", answered=False) from None


def _first_line(error: Exception) -> str:
    """The start of obstore's message, which may be pages long and contain the XML of a response."""
    text = str(error).strip().partition("\n")[0].partition(": <")[0]
    return text[:300].rstrip(".") or type(error).__name__
