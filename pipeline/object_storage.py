"""The half of `pipeline.storage` for object stores, through obstore."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from pipeline.failpoints import failpoint
from pipeline.storage import FileInfo, HashingWriter, Storage
from scorers.errors import UserError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

_SPOOL_BYTES = 16 * 1024 * 1024


class ObjectStorage(Storage):
    """A prefix of an object store that refuses to create an object twice (S3, GCS, Azure, and most of their kin)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        if not urlsplit(uri).netloc:
            raise UserError(f"{uri} names no bucket; give something like {uri.partition('://')[0]}://bucket/prefix.")
        try:
            _ = self._store
        except (BaseError, ValueError) as error:
            raise UserError(f"Cannot use {uri}: {_brief(error)}.") from None

    def __reduce__(self) -> tuple[type["ObjectStorage"], tuple[str]]:
        return (ObjectStorage, (self.uri,))

    @cached_property
    def _store(self) -> "ObjectStore":
        return self._connect({})

    def _connect(self, retries: "RetryConfig") -> "ObjectStore":
        client: ClientConfig = {"timeout": timedelta(minutes=5)}
        config: dict[str, Any] = {}
        if self.uri.startswith("s3://"):
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            if endpoint:
                config["endpoint"] = endpoint
                client["allow_http"] = endpoint.startswith("http://")
        return from_url(self.uri, client_options=client, retry_config=retries, **config)

    def check(self) -> None:  # noqa: D102 - see Storage, here and below
        try:
            with _as_os_error(self.uri):
                obstore.list_with_delimiter(self._connect({"max_retries": 2}))
        except OSError as error:
            raise UserError(
                f"{error}. Check the bucket's name, the credentials (environment or machine role) and the endpoint."
            ) from None

    def put_if_absent(self, path: str, data: bytes) -> bool:  # noqa: D102
        try:
            with _as_os_error(self._name(path)):
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
        except FileExistsError:
            return False
        return True

    def put(self, path: str, data: bytes) -> None:  # noqa: D102
        with _as_os_error(self._name(path)):
            obstore.put(self._store, path, data, use_multipart=False)

    def read(self, path: str) -> bytes:  # noqa: D102
        with _as_os_error(self._name(path)):
            return obstore.get(self._store, path).bytes().to_bytes()

    def size(self, path: str) -> int | None:  # noqa: D102
        try:
            with _as_os_error(self._name(path)):
                return obstore.head(self._store, path)["size"]
        except FileNotFoundError:
            return None

    def list(self, folder: str = "") -> Iterator[FileInfo]:  # noqa: D102
        with _as_os_error(self._name(folder)):
            found = [
                FileInfo(meta["path"], meta["size"])
                for chunk in obstore.list(self._store, folder.rstrip("/") or None)
                for meta in chunk
            ]
        yield from sorted(found)

    def children(self, folder: str = "") -> Sequence[str]:  # noqa: D102
        with _as_os_error(self._name(folder)):
            found = obstore.list_with_delimiter(self._store, folder.rstrip("/") or None)
        names = [path.rpartition("/")[2] + "/" for path in found["common_prefixes"]]
        # Consoles and some servers keep an empty object in place of a folder.
        files = [meta["path"] for meta in found["objects"] if meta["path"] != folder.rstrip("/")]
        return sorted([*names, *(path.rpartition("/")[2] for path in files)])

    @contextlib.contextmanager
    def open_write(self, path: str) -> Iterator[HashingWriter]:  # noqa: D102
        # Spooled, not streamed as a multipart upload: one that is never completed stays in the bucket, and is paid for.
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            yield HashingWriter(spool)
            spool.seek(0)
            failpoint("staged-written")
            with _as_os_error(self._name(path)):
                obstore.put(self._store, path, spool)
            failpoint("staged-synced")

    def open_read(self, path: str) -> pa.NativeFile:  # noqa: D102
        with _as_os_error(self._name(path)):
            reader = obstore.open_reader(self._store, path)
        return pa.PythonFile(_ObjectReader(reader, self._name(path)), mode="r")

    def move(self, source: str, target: str) -> None:  # noqa: D102
        try:
            with _as_os_error(self._name(source)):
                obstore.copy(self._store, source, target)
        except FileNotFoundError:
            if not self.exists(target):
                raise
        else:
            self.delete(source)

    def delete(self, path: str) -> None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError), _as_os_error(self._name(path)):
            obstore.delete(self._store, path)

    def delete_folder(self, folder: str) -> None:  # noqa: D102
        paths = [info.path for info in self.list(folder)]
        with contextlib.suppress(FileNotFoundError), _as_os_error(self._name(folder)):
            if paths:
                obstore.delete(self._store, paths)

    def _name(self, path: str) -> str:
        return f"{self.uri}/{path}"


class _ObjectReader(io.RawIOBase):
    """obstore's reader as a Python file whose errors are `OSError`."""

    def __init__(self, reader: Any, name: str) -> None:
        super().__init__()
        self._reader = reader
        self._name = name

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
        with _as_os_error(self._name):
            return bytes(self._reader.read(None if size is None or size < 0 else size))


@contextlib.contextmanager
def _as_os_error(name: str) -> Iterator[None]:
    try:
        yield
    except AlreadyExistsError:
        raise FileExistsError(f"{name} exists already") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist") from None
    except BaseError as error:
        raise OSError(f"Cannot access {name}: {_brief(error)}") from None


def _brief(error: Exception) -> str:
    """The start of obstore's message, which goes on for pages and may hold the XML of an answer."""
    text = str(error).strip().partition("\n")[0].partition(": <")[0]
    return text[:300].rstrip(".") or type(error).__name__
