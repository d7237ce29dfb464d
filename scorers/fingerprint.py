"""Fingerprints: a short string that changes whenever a score of the scorer could change."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20

_collected: ContextVar[list[dict[str, Any]] | None] = ContextVar("collected", default=None)


def fingerprint(
    kind: str,
    options: Mapping[str, Any],
    *,
    revision: int = 1,
    libraries: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> str:
    """Return a stable hash of everything that the scores depend on, such as `linear-1f0c6d5e8a7b9c3d`.

    Args:
        kind: the kind of the scorer.
        options: semantic options as JSON values, without paths: the content counts, not its place.
        revision: of our own code; raise it when a code change changes scores.
        libraries: version by distribution.
        files: sha256 in hex by name, of weights and other content.
    """
    facts = {
        "kind": kind,
        "options": dict(options),
        "revision": revision,
        "libraries": dict(libraries or {}),
        "files": dict(files or {}),
    }
    collected = _collected.get()
    if collected is not None:
        collected.append(facts)
    canonical = json.dumps(facts, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"{kind}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


@contextmanager
def collect_facts() -> Iterator[list[dict[str, Any]]]:
    """Collect the arguments of every `fingerprint` call in the block, by name, in order."""
    facts: list[dict[str, Any]] = []
    token = _collected.set(facts)
    try:
        yield facts
    finally:
        _collected.reset(token)


def library_versions(*distributions: str) -> dict[str, str]:
    """Return the installed version of each distribution; `absent` if it is not installed."""
    return {name: _version(name) for name in distributions}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_sha256(folder: Path, ignore: Iterable[str] = ("__pycache__",)) -> str:
    """Return the sha256 of the relative names and bytes of a folder's files, independent of their order and times.

    Raises:
        OSError: a file cannot be read.
    """
    ignored = set(ignore)
    digest = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        relative = path.relative_to(folder)
        if ignored.isdisjoint(relative.parts):
            digest.update(f"{relative.as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
