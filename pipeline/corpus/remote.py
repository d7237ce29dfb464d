"""Resolve URIs to file systems and files with pyarrow.fs; those of the Hugging Face hub are delegated to `hub`."""

import functools
import re
from collections.abc import Iterator

import pyarrow.fs as pafs

from pipeline.corpus import hub
from scorers.printing import refuse_secret

_MAGIC = re.compile(r"[*[]")  # a question mark begins the query of a URI


def locate(uri: str, options: str = "") -> tuple[pafs.FileSystem, str]:
    """The file system of a URI without its query, and the path in it.

    Args:
        uri: `scheme://authority/path`; the path is used literally, with blanks and percent signs.
        options: the query, such as `endpoint_override=http%3A%2F%2F127.0.0.1%3A8333`.

    Raises:
        UserError: the URI contains a password.
        OSError, pa.ArrowException: pyarrow cannot open it.
    """
    if uri.startswith(hub.SCHEME):
        return hub.filesystem(), uri.removeprefix(hub.SCHEME)
    root, path = _parts(uri)
    filesystem, base = _filesystem(root, options)
    return filesystem, f"{base}/{path}" if path else base or "/"


def find_files(uri: str, options: str = "") -> Iterator[tuple[str, int]] | None:
    """List the files of a file, folder or glob URI as (URI, size); None if the path does not exist.

    Names that begin with a dot are skipped, in folders and by globs.

    Raises:
        UserError: the URI contains a password, or the hub refuses it.
        OSError, pa.ArrowException: pyarrow cannot open or list it.
    """
    if uri.startswith(hub.SCHEME):
        return hub.find_files(uri, _MAGIC, _glob_regex)
    filesystem, path = locate(uri, options)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        return iter([(uri, info.size)])
    pattern = None
    if info.type == pafs.FileType.NotFound:
        magic = _MAGIC.search(path)
        if magic is None:
            return None
        pattern = _glob_regex(path)
        path = path[: magic.start()].rpartition("/")[0]
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    root = _parts(uri)[0]
    base = _filesystem(root, options)[1]
    return (
        (root + each.path[len(base) :], each.size)
        for each in infos
        if each.type == pafs.FileType.File
        and (pattern is None or pattern.fullmatch(each.path))
        and not any(name.startswith(".") for name in each.path[len(path) :].split("/"))
    )


def _parts(uri: str) -> tuple[str, str]:
    scheme, _, rest = uri.partition("://")
    authority, _, path = rest.partition("/")
    refuse_secret(uri, "input")
    return f"{scheme}://{authority}", path


@functools.lru_cache(maxsize=16)
def _filesystem(root: str, options: str) -> tuple[pafs.FileSystem, str]:
    # Pass only the root to pyarrow as a URI: keys with blanks or % must not be decoded.
    filesystem, base = pafs.FileSystem.from_uri(f"{root}/?{options}" if options else f"{root}/")
    return filesystem, base.rstrip("/")


def _glob_regex(pattern: str) -> re.Pattern[str]:
    """Convert a glob: `*` and `[...]` stay within a folder, `**/` crosses folders, as in `glob.glob`."""
    parts = re.split(r"(\*\*/|\*+|\[!?[^\]]+\])", pattern)
    return re.compile("".join(_glob_part(part) for part in parts))


def _glob_part(part: str) -> str:
    if part == "**/":
        return "(?:[^/]+/)*"
    if part.startswith("*"):
        return "[^/]*"
    if part.startswith("[") and part.endswith("]"):
        inner = part[1:-1].replace("\\", r"\\")
        return f"(?![/])[^{inner[1:]}]" if inner.startswith("!") else f"(?![/])[{inner}]"
    return re.escape(part)
