"""Write files that appear complete or not at all, and never replace another."""

import contextlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyarrow as pa

from pipeline.storage.base import Storage
from scorers.errors import UserError
from scorers.paths import UnsafePathError

COMPRESSIONS = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
"""The compression of a file of JSON lines, by its suffix."""

SUFFIXES = (*COMPRESSIONS, ".parquet")
"""The suffixes of single files that an export writes."""

# Of what an unfinished export has written.
STAGING = ".phf-export/"


def suffix_of(name: str, suffixes: Iterable[str]) -> str:
    """The suffix of a file name; empty if it has none of these, or is nothing else."""
    return next((suffix for suffix in suffixes if name.endswith(suffix) and name != suffix), "")


def refuse_existing(storage: Storage, name: str, output: str) -> None:
    """Refuse an output that exists; an empty `name` stands for the folder itself, which may exist empty.

    Raises:
        UserError: it exists.
    """
    names = storage.children()
    try:
        taken = storage.exists(name) or f"{name}/" in names if name else any(each != STAGING for each in names)
        # `children` does not list links.
        taken = taken or (not name and any(storage.irregular()))
    except UnsafePathError:
        taken = True
    if taken:
        raise UserError(f"{output} exists already and is not overwritten. Choose another output, or delete it.")


@contextmanager
def staged(storage: Storage) -> Iterator[Callable[[str], AbstractContextManager[Any]]]:
    """Write files to a staging folder, and move them to their names if the block succeeds."""
    folder = f"{STAGING}{secrets.token_hex(4)}"
    names: list[str] = []

    def stage(name: str) -> AbstractContextManager[Any]:
        names.append(name)
        return storage.open_write(f"{folder}/{name}")

    try:
        yield stage
        for name in names:
            storage.move(f"{folder}/{name}", name)
    finally:
        with contextlib.suppress(OSError):
            storage.delete_folder(folder)
            if not storage.children(STAGING):
                storage.delete_folder(STAGING)


def write_lines(file: AbstractContextManager[Any], rows: Iterable[Mapping[str, Any]], compression: str | None) -> None:
    """Write rows as JSON lines."""
    with file as sink, pa.PythonFile(sink, mode="w") as plain, _compressed(plain, compression) as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _compressed(plain: pa.NativeFile, compression: str | None) -> AbstractContextManager[Any]:
    return contextlib.nullcontext(plain) if compression is None else pa.CompressedOutputStream(plain, compression)
