"""Read datasets of the Hugging Face hub: `hf://datasets/OWNER/NAME[@REVISION][/PATH or glob]`.

A revision is resolved to its commit before anything is read, and the commit is part of every source's URI: a job reads
one state of a dataset, whatever is pushed meanwhile. The token and the address of another hub come from the environment
(HF_TOKEN, HF_ENDPOINT).
"""

import functools
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from scorers.errors import UserError

SCHEME = "hf://"

# Only revisions that the hub itself creates may contain a slash; in others it is written %2F.
_URI = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?")
_FORM = "hf://datasets/OWNER/NAME[@REVISION][/PATH]"
_TIMEOUT_S = 10.0


def filesystem() -> pafs.FileSystem:
    """The hub as a pyarrow file system, with paths such as `datasets/OWNER/NAME@COMMIT/data/0.parquet`."""
    return pafs.PyFileSystem(_HubHandler(_client().hub))


def find_files(
    uri: str, magic: re.Pattern[str], to_regex: Callable[[str], re.Pattern[str]]
) -> Iterator[tuple[str, int]] | None:
    """List the files of a dataset, folder, file or glob as (URI, size), named by their commit.

    `magic` matches the wildcards of a glob; `to_regex` converts a glob.

    Returns:
        None if the path does not exist.

    Raises:
        UserError: the URI has another form, the dataset or revision does not exist or may not be read with this token,
            or the hub does not answer.
    """
    repository, revision, path = _parse(uri)
    commit = _commit(repository, revision, _endpoint())
    root = f"{SCHEME}datasets/{repository}@{commit}"
    glob = magic.search(path)
    folder = path[: glob.start()].rpartition("/")[0] if glob else path
    found = list(_list(repository, commit, folder, recursive=True))
    if glob is not None:
        pattern = to_regex(path)
        found = [each for each in found if pattern.fullmatch(each[0])]
    elif path and not found:
        found = [each for each in _list(repository, commit, path.rpartition("/")[0]) if each[0] == path]
        return ((f"{root}/{name}", size) for name, size in found) if found else None
    hidden = len(folder) + 1 if folder else 0
    return (
        (f"{root}/{name}", size)
        for name, size in found
        if not any(part.startswith(".") for part in name[hidden:].split("/"))
    )


def _parse(uri: str) -> tuple[str, str | None, str]:
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(f"The input {uri} is not of the form {_FORM}.")
    repository, revision, path = match.groups()
    return repository, revision and unquote(revision), (path or "").strip("/")


@functools.lru_cache(maxsize=64)  # so that two inputs of one job never get two commits
def _commit(repository: str, revision: str | None, endpoint: str) -> str:
    with _translate_errors(repository, revision):
        info = _client().api.dataset_info(repository, revision=revision, timeout=_TIMEOUT_S)
    if info.sha is None:
        raise UserError(f"The hub at {endpoint} does not say which commit of the dataset {repository} is current.")
    return str(info.sha)


def _list(repository: str, commit: str, folder: str, *, recursive: bool = False) -> Iterator[tuple[str, int]]:
    """The files of a folder; none if it does not exist."""
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    with _translate_errors(repository, commit):
        try:
            yield from (
                (entry.path, entry.size)
                for entry in _client().api.list_repo_tree(
                    repository, folder or None, recursive=recursive, revision=commit, repo_type="dataset"
                )
                if isinstance(entry, RepoFile)
            )
        except EntryNotFoundError:
            return


class _Client:
    def __init__(self, endpoint: str, token: str | None) -> None:
        from huggingface_hub import HfApi, HfFileSystem

        # False, not None: without HF_TOKEN, do not read a token from the home folder.
        self.api = HfApi(endpoint=endpoint, token=token or False)
        self.hub = HfFileSystem(endpoint=endpoint, token=token or False)


def _client() -> _Client:
    return _make_client(_endpoint(), os.environ.get("HF_TOKEN"))


@functools.lru_cache(maxsize=4)
def _make_client(endpoint: str, token: str | None) -> _Client:
    return _Client(endpoint, token)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@contextmanager
def _translate_errors(repository: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"The dataset {repository} is gated. Accept its terms at {_endpoint()}/datasets/{repository} and set "
            "HF_TOKEN to a token of that account."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"There is no dataset {repository} at {_endpoint()}, or it is private. Check the name, or set HF_TOKEN to "
            "a token that may read it."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"The dataset {repository} has no revision {revision!r}.") from None
    except errors.EntryNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub's client does not wrap the errors of its HTTP library
        raise UserError(
            f"Cannot reach the hub at {_endpoint()} for the dataset {repository}: {_brief(error)}. Check the network, "
            "or use local files."
        ) from None


def _brief(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


class _HubHandler(pafs.FSSpecHandler):  # type: ignore[misc]
    """Opens files of the hub; every failure is an OSError, and FileNotFoundError only for a missing file."""

    def open_input_file(self, path: str) -> pa.NativeFile:
        """A seekable file for reading."""
        with _raise_os_errors():
            return pa.PythonFile(_HubFile(self.fs.open(path, "rb")), mode="r")


class _HubFile(io.RawIOBase):
    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        with _raise_os_errors():
            data: bytes = self._file.read(size)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position: int = self._file.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._file.tell()
        return position

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _raise_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - as in `_translate_errors`
        raise ConnectionError(f"the hub does not answer ({_brief(error)})") from None
