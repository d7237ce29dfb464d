"""From what the user names (files, folders, globs, URIs) to the sources of a corpus, in an order that never varies."""

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from pipeline.corpus import remote
from scorers.contract import DocumentKind
from scorers.errors import UserError
from scorers.printing import refuse_secret

Format = Literal["jsonl", "parquet", "arrow", "warc", "text"]
Compression = Literal["gzip", "zstd"]

SUFFIXES: dict[str, tuple[Format, Compression | None]] = {
    ".jsonl": ("jsonl", None),
    ".jsonl.gz": ("jsonl", "gzip"),
    ".jsonl.zst": ("jsonl", "zstd"),
    ".parquet": ("parquet", None),
    ".arrow": ("arrow", None),
    ".wet": ("warc", None),
    ".wet.gz": ("warc", "gzip"),
    ".warc": ("warc", None),
    ".warc.gz": ("warc", "gzip"),
    ".txt": ("text", None),
    ".py": ("text", None),
}
_KNOWN = ", ".join(SUFFIXES)
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Source:
    """An input file.

    Attributes:
        uri: its name in the dataset: the path as it follows from the user's argument, or a URI without its query.
        format: how records lie in it.
        compression: of the whole file.
        kind: of its documents.
        size: bytes.
        options: the query of the user's URI (`endpoint_override=...`), which opens the file but is no part of its name.
    """

    uri: str
    format: Format
    compression: Compression | None
    kind: DocumentKind
    size: int
    options: str = ""


def find_sources(
    inputs: Sequence[str], kind: Literal["auto", "prose", "python"] = "auto", *, output: str | None = None
) -> list[Source]:
    """All sources that the arguments name, sorted by URI, each once.

    A folder stands for every file in it, at any depth, whose suffix is known; names that begin with a dot are skipped,
    and the caches of `datasets` (`cache-*.arrow`). So does a glob, in which `**` crosses folders. A relative path stays
    relative: the dataset does not depend on where the corpus lies on a machine. The same file named in two ways is one
    source.

    Args:
        inputs: files, folders or globs, local or URIs of pyarrow.fs, or `hf://datasets/OWNER/NAME[@REVISION][/PATH]`,
            whose sources are named by their commit.
        kind: of all documents; `auto` takes `.py` files for Python and everything else for prose.
        output: where the dataset is written; what folders and globs find there is no input.

    Raises:
        UserError: a missing path, a folder or glob without any input, a file whose suffix is unknown, a name that is
            not UTF-8, a URI that cannot be opened or that holds a password, or an input inside the output.
    """
    found: dict[str, Source] = {}
    for argument in inputs:
        sources = list(_find(argument, kind, output))
        if not sources:
            raise UserError(f"{argument} holds no input: no file there ends with any of {_KNOWN}.")
        for source in sources:
            key = source.uri if "://" in source.uri else os.path.abspath(source.uri)  # noqa: PTH100 (links stay links)
            if key not in found or source.uri < found[key].uri:
                found[key] = source
    return sorted(found.values(), key=lambda source: source.uri)


def open_source(source: Source) -> pa.NativeFile:
    """Open a source at its start, seekable, its bytes as they are (nothing is decompressed).

    Raises:
        UserError: it is missing or cannot be opened.
    """
    try:
        if "://" not in source.uri:
            return pa.OSFile(source.uri, "rb")
        filesystem, path = remote.locate(source.uri, source.options)
        return filesystem.open_input_file(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(cannot_read(source.uri, error)) from None


def cannot_read(uri: str, error: BaseException) -> str:
    """What to tell of an input that a disk or network would not give."""
    return f"Cannot read the input {uri}: {_reason(error)}."


def _find(argument: str, kind: str, output: str | None) -> Iterator[Source]:
    path = _local_path(argument)
    if not argument or "\0" in argument:
        raise UserError("An input is empty; give files, folders or globs.")
    if path is None:
        yield from _find_remote(argument, kind, output)
    else:
        yield from _find_local(path, kind, output)


def _local_path(uri: str) -> str | None:
    if uri.startswith("file://"):
        return unquote(urlsplit(uri).path)
    return None if "://" in uri else uri


def _find_local(argument: str, kind: str, output: str | None) -> Iterator[Source]:
    place = None if output is None else _local_path(output)
    if os.path.lexists(argument):
        if place is not None and _inside(argument, place):
            raise UserError(f"The input {argument} lies inside the output {output}. Choose another output.")
        paths, explicit = [argument], True
    elif _MAGIC.search(argument):
        paths, explicit = glob.glob(argument, recursive=True), False  # noqa: PTH207 (Path.glob is not relative to here)
        if not paths:
            raise UserError(f"No file matches {argument}. Check the pattern and the folder it starts from.")
    else:
        raise UserError(f"There is no input {argument}. Check the path.")
    for path in paths:
        try:
            mode = Path(path).stat().st_mode
        except OSError as error:
            raise UserError(cannot_read(path, error)) from None
        if stat.S_ISDIR(mode):
            yield from _walk(path, kind, place)
        elif not stat.S_ISREG(mode):
            if explicit:
                raise UserError(f"The input {path} is neither a file nor a folder; inputs are read more than once.")
        elif place is None or not _inside(path, place):
            yield from _local_file(path, kind, explicit=explicit)


def _walk(folder: str, kind: str, output: str | None) -> Iterator[Source]:
    def refuse(error: OSError) -> None:
        raise UserError(f"Cannot read the folder {error.filename}: {_reason(error)}.")

    seen: set[Path] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        place = Path(parent).resolve()
        if place in seen or (output is not None and place.is_relative_to(Path(output).resolve())):
            folders.clear()
            continue
        seen.add(place)
        # The order decides by which name a folder is known that links lead to twice.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = os.path.join(parent, name)  # noqa: PTH118 (strings, as the user's argument is one)
            if not _is_aside(name) and _format_of(name) is not None and _is_file(path):
                yield from _local_file(path, kind, explicit=False)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except OSError as error:
        raise UserError(cannot_read(path, error)) from None


def _local_file(path: str, kind: str, *, explicit: bool) -> Iterator[Source]:
    known = _format_of(path)
    if known is None:
        if explicit:
            raise UserError(_unknown_suffix(path))
        return
    if not explicit and _is_aside(Path(path).name):
        return
    path = os.path.normpath(path)
    _require_utf8(path)
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise UserError(cannot_read(path, error)) from None
    yield Source(path, known[0], known[1], _kind_of(path, kind), size)


def _find_remote(argument: str, kind: str, output: str | None) -> Iterator[Source]:
    refuse_secret(argument, "input")
    uri, _, options = argument.partition("?")
    uri = uri.rstrip("/")
    place = "" if output is None else output.rstrip("/") + "/"
    if place and f"{uri}/".startswith(place):
        raise UserError(f"The input {uri} lies inside the output {output}. Choose another output.")
    try:
        files = remote.find_files(uri, options)
    except (OSError, pa.ArrowException) as error:
        raise UserError(cannot_read(uri, error)) from None
    if files is None:
        raise UserError(f"There is no input {uri}. Check the URI.")
    for name, size in files:
        known = _format_of(name)
        if known is None and name == uri:
            raise UserError(_unknown_suffix(uri))
        if known is not None and not (place and name.startswith(place)) and (name == uri or not _is_aside(name)):
            _require_utf8(name)
            yield Source(name, known[0], known[1], _kind_of(name, kind), size, options)


def _is_aside(path: str) -> bool:
    """Whether folders and globs leave a file out: a hidden one, or what `datasets` keeps beside a saved dataset."""
    name = path.rpartition("/")[2]
    return name.startswith(".") or (name.startswith("cache-") and name.endswith(".arrow"))


def _format_of(path: str) -> tuple[Format, Compression | None] | None:
    name = path.rpartition("/")[2].lower()
    return next((SUFFIXES[suffix] for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), None)


def _kind_of(path: str, kind: str) -> DocumentKind:
    if kind == "prose":
        return "prose"
    return "python" if kind == "python" or path.lower().endswith(".py") else "prose"


def _inside(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def _require_utf8(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"The name of the input {path!r} is not valid UTF-8; rename the file.") from None


def _unknown_suffix(path: str) -> str:
    return f"The input {path} is of an unknown type; phf reads {_KNOWN}. Rename the file, or leave it out."


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".") or type(error).__name__
