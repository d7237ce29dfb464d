"""Resolve inputs (files, folders, globs, URIs) to the sources of a corpus, in a deterministic order."""

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from pipeline.corpus import remote
from pipeline.corpus.compression import Compression
from pipeline.corpus.own_files import is_own_file, is_own_folder, is_settings, model_files
from pipeline.corpus.suffixes import KNOWN, Format, format_of, is_skipped, kind_of, may_be_settings, type_of
from pipeline.dataset.manifest import LeftOut
from scorers.contract import DocumentKind
from scorers.errors import UserError
from scorers.paths import escape_path, require_utf8
from scorers.printing import refuse_secret

_MAGIC = re.compile(r"[*?[]")
# Enough of a file to distinguish records from settings.
_HEAD = 1 << 16
_THREADS = 16
# Limits of the listing of left-out files: the number of types, and of names per type.
_MOST_TYPES, _MOST_NAMES = 20, 5
_SETTINGS = ".json without one record per line"
_OWN = "written by phf"


@dataclass(frozen=True, slots=True)
class Source:
    """An input file.

    Attributes:
        uri: the name in the dataset: a path, relative if the user's argument is, or a URI without its query.
        format: the layout of its records.
        compression: the compression of the whole file.
        kind: the kind of its documents.
        size: bytes.
        options: the query of the user's URI (`endpoint_override=...`), needed to open the file but not part of `uri`.
    """

    uri: str
    format: Format
    compression: Compression | None
    kind: DocumentKind
    size: int
    options: str = ""


@dataclass(frozen=True)
class Inputs:
    """The resolved inputs: the sources in order, and the files among them that are left out."""

    sources: list[Source]
    left_out: list[LeftOut]


@dataclass(frozen=True, slots=True)
class _Other:
    """A left-out file, or a folder written by phf."""

    uri: str
    type: str


_Found = Source | _Other


def find_sources(
    inputs: Sequence[str], kind: Literal["auto", "prose", "python"] = "auto", *, output: str | None = None
) -> list[Source]:
    """Return only the sources of `find_inputs`."""
    return find_inputs(inputs, kind, output=output).sources


def find_inputs(
    inputs: Sequence[str],
    kind: Literal["auto", "prose", "python"] = "auto",
    *,
    output: str | None = None,
    own: Collection[str] = (),
) -> Inputs:
    """Find all sources of the arguments, sorted by URI, each once; and list the files in folders and globs left out.

    A folder stands for every file in it, at any depth, with a known suffix; names that begin with a dot, and the
    metadata files of `datasets` and transformers, are skipped. Globs work alike; `**` crosses folders. Whatever phf
    itself has written is skipped: outputs, runs, token stores, logs. A relative path stays relative, so that the
    dataset does not depend on where the corpus lies. A file named in two ways is one source.

    Args:
        inputs: files, folders or globs, local or URIs of pyarrow.fs, or `hf://datasets/OWNER/NAME[@REVISION][/PATH]`,
            whose sources are named by their commit.
        kind: the kind of all documents; `auto` takes `.py` files for Python and everything else for prose.
        output: the output of the job; files in it are not inputs.
        own: local files that this command reads its settings from or writes its log to; they are not inputs.

    Raises:
        UserError: a path is missing, a folder or glob holds no input, a suffix is unknown, a name is not UTF-8, a URI
            cannot be opened or contains a password, or an input lies inside the output.
    """
    found: dict[str, Source] = {}
    others: dict[str, _Other] = {}
    mine = {Path(each).resolve() for each in own}
    for argument in inputs:
        some = False
        for each in _find(argument, kind, output, mine):
            key = each.uri if "://" in each.uri else os.path.abspath(each.uri)  # noqa: PTH100 (links stay links)
            if isinstance(each, _Other):
                others[key] = each
                continue
            some = True
            if key not in found or each.uri < found[key].uri:
                found[key] = each
        if not some:
            raise UserError(f"{argument} holds no input: no file there ends with any of {KNOWN}.")
    return Inputs(
        sorted(found.values(), key=lambda source: source.uri),
        _summarise(each for key, each in others.items() if key not in found),
    )


def _summarise(others: Iterable[_Other]) -> list[LeftOut]:
    """Group the left-out files by type, the most frequent first."""
    names: dict[str, list[str]] = {}
    for each in sorted(others, key=lambda other: other.uri):
        names.setdefault(each.type, []).append(each.uri.encode(errors="backslashreplace").decode())
    counts = Counter({kind: len(uris) for kind, uris in names.items()})
    ordered = sorted(counts, key=lambda kind: (-counts[kind], kind))
    rest = sorted(uri for kind in ordered[_MOST_TYPES:] for uri in names[kind])
    listed = [(kind, names[kind]) for kind in ordered[:_MOST_TYPES]] + ([("others", rest)] if rest else [])
    return [LeftOut(type=kind, files=len(uris), uris=uris[:_MOST_NAMES]) for kind, uris in listed]


def open_source(source: Source) -> pa.NativeFile:
    """Open a source for reading, seekable, without decompression.

    Raises:
        UserError: the source is missing or cannot be opened.
    """
    try:
        if "://" not in source.uri:
            return pa.OSFile(source.uri, "rb")
        filesystem, path = remote.locate(source.uri, source.options)
        return filesystem.open_input_file(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(cannot_read(source.uri, error)) from None


def cannot_read(uri: str, error: BaseException) -> str:
    """The message for an input that could not be read from a disk or network."""
    return f"Cannot read the input {uri}: {_reason(error)}."


def _find(argument: str, kind: str, output: str | None, own: Collection[Path]) -> Iterator[_Found]:
    path = _local_path(argument)
    if not argument or "\0" in argument:
        raise UserError("An input is empty; give files, folders or globs.")
    if path is None:
        yield from _find_remote(argument, kind, output)
    else:
        yield from _find_local(path, kind, output, own)


def _local_path(uri: str) -> str | None:
    if uri.startswith("file://"):
        return unquote(urlsplit(uri).path)
    return None if "://" in uri else uri


def _find_local(argument: str, kind: str, output: str | None, own: Collection[Path]) -> Iterator[_Found]:
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
    # The folders before the first wildcard are named by the user, so they are read even if phf wrote them.
    root = argument if explicit else argument[: _first_magic(argument)].rpartition("/")[0]
    known: dict[str, bool] = {}
    for path in paths:
        if not explicit and (folder := _own_above(path, root, known)):
            yield _Other(os.path.normpath(folder), _OWN)
            continue
        try:
            mode = Path(path).stat().st_mode
        except OSError as error:
            raise UserError(cannot_read(path, error)) from None
        if stat.S_ISDIR(mode):
            yield from _walk(path, kind, place, own, explicit=explicit)
        elif not stat.S_ISREG(mode):
            if explicit:
                raise UserError(
                    f"The input {path} is neither a file nor a folder. Pipes and devices do not work, because inputs "
                    "are read more than once."
                )
        elif explicit and own and Path(path).resolve() in own:
            raise UserError(f"The input {escape_path(path)} is the file of --log or --config. Give another one.")
        elif place is None or not _inside(path, place):
            yield from _local_file(path, kind, own, explicit=explicit)


def _first_magic(pattern: str) -> int:
    found = _MAGIC.search(pattern)
    return found.start() if found else len(pattern)


def _walk(folder: str, kind: str, output: str | None, own: Collection[Path], *, explicit: bool) -> Iterator[_Found]:
    def refuse(error: OSError) -> None:
        raise UserError(f"Cannot read the folder {error.filename}: {_reason(error)}.")

    seen: set[Path] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        place = Path(parent).resolve()
        if place in seen or (output is not None and place.is_relative_to(Path(output).resolve())):
            folders.clear()
            continue
        seen.add(place)
        if _is_own_folder(parent, files, folders):
            if explicit and parent == folder:
                raise UserError(
                    f"{escape_path(folder)} was written by phf and is not a corpus. To read the texts of a labelled "
                    f"dataset again, give {escape_path(folder)}/data."
                )
            folders.clear()
            yield _Other(os.path.normpath(parent), _OWN)
            continue
        # The order decides the name of a folder that is reachable by two links.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        of_model = model_files(files)
        for name in files:
            if name not in of_model:
                path = os.path.join(parent, name)  # noqa: PTH118 (strings, as the user's argument is one)
                yield from _local_file(path, kind, own, explicit=False)


def _is_own_folder(folder: str, files: Iterable[str], folders: Collection[str]) -> bool:
    names = {*files, *(f"{name}/" for name in folders)}
    if "job/" in names and Path(folder, "job", "config.json").is_file():
        names.add("job/config.json")
    return is_own_folder(names)


def _own_above(path: str, root: str, known: dict[str, bool]) -> str | None:
    """The folder below `root`, written by phf, that holds `path`; None if there is none."""
    parent = os.path.dirname(path)  # noqa: PTH120 (strings, as the user's argument is one)
    if len(parent) <= len(root):
        return None
    if parent not in known:
        entries = list(os.scandir(parent))
        folders = [each.name for each in entries if each.is_dir()]
        known[parent] = _is_own_folder(parent, [each.name for each in entries], folders)
    return parent if known[parent] else _own_above(parent, root, known)


def _local_file(path: str, kind: str, own: Collection[Path], *, explicit: bool) -> Iterator[_Found]:
    known = format_of(path)
    if known is None and explicit:
        raise UserError(_unknown_suffix(path))
    if not explicit and (is_skipped(path) or (own and Path(path).resolve() in own)):
        return
    path = os.path.normpath(path)
    if known is None:
        yield _Other(path, type_of(path))
        return
    require_utf8(path)
    try:
        found = Path(path).stat()
    except OSError as error:
        raise UserError(cannot_read(path, error)) from None
    if stat.S_ISREG(found.st_mode):
        source = Source(path, known[0], known[1], kind_of(path, kind), found.st_size)
        yield source if explicit else _classify(source)


def _classify(source: Source) -> _Found:
    """Return, from its beginning, whether a file holds records, or settings, or a log or configuration of phf."""
    if source.format not in {"jsonl", "text"} or source.kind == "python" or source.compression is not None:
        return source
    try:
        with open_source(source) as file:
            head = bytes(file.read(_HEAD))
    except (OSError, pa.ArrowException) as error:
        raise UserError(cannot_read(source.uri, error)) from None
    if is_own_file(head):
        return _Other(source.uri, _OWN)
    return _Other(source.uri, _SETTINGS) if may_be_settings(source.uri) and is_settings(head) else source


def _find_remote(argument: str, kind: str, output: str | None) -> Iterator[_Found]:
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
    listed = [(name, size) for name, size in files if not (place and name.startswith(place))]
    own = _own_prefixes(uri, [name for name, _ in listed])
    yield from (_Other(prefix.rstrip("/"), _OWN) for prefix in own)
    candidates: list[Source] = []
    for name, size in listed:
        known = format_of(name)
        if known is None and name == uri:
            raise UserError(_unknown_suffix(uri))
        if name != uri and (is_skipped(name) or any(name.startswith(prefix) for prefix in own)):
            continue
        if known is None:
            yield _Other(name, type_of(name))
            continue
        require_utf8(name)
        candidates.append(Source(name, known[0], known[1], kind_of(name, kind), size, options))
    if len(candidates) == 1 and candidates[0].uri == uri:
        yield candidates[0]
    elif candidates:
        with ThreadPoolExecutor(_THREADS) as threads:
            yield from threads.map(
                lambda source: _classify(source) if may_be_settings(source.uri) else source, candidates
            )


def _own_prefixes(root: str, names: Sequence[str]) -> list[str]:
    """The folders below `root` that phf wrote, each with a trailing slash, recognised by the names in them."""
    folders: dict[str, set[str]] = {}
    for name in names:
        parent, _, last = name.rpartition("/")
        folders.setdefault(parent, set()).add(last)
        above, _, folder = parent.rpartition("/")
        folders.setdefault(above, set()).update({f"{folder}/", *([f"{folder}/{last}"] if folder == "job" else [])})
    return sorted(
        f"{folder}/" for folder, entries in folders.items() if folder.startswith(f"{root}/") and is_own_folder(entries)
    )


def _inside(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def _unknown_suffix(path: str) -> str:
    return f"The input {path} is of an unknown type; phf reads {KNOWN}. Rename the file, or leave it out."


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".") or type(error).__name__
