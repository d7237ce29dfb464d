"""A scorer that leaks text in every way it can, and a search for the leaks."""

import base64
import ctypes
import gzip
import json
import logging
import os
import sys
import time
import urllib.parse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scorers.attempt import attempt
from scorers.contract import Document, Execution, ScoringError, SemanticOptions
from scorers.errors import UserError

ASCII = "qzjxkvwpyfhbgmtdnrlc"
OTHER = "Žýřčáďťňúůěščříö"
CANARY = f"{ASCII} {OTHER}"

ENTRY_POINTS = "[phf.scorers]\nleaky = tests.pipeline.leaky:LeakyScorer\n"
METADATA = "Metadata-Version: 2.1\nName: phf-leaky\nVersion: 1.0\n"

# Actions that a text can request. The last ones kill the worker.
POISON = ("RAISE", "RAISE-OS", "RAISE-USER", "RAISE-BASE", "SLOW")
DEADLY = ("EXIT", "SEGFAULT", "ABORT", "HANG")


class BadError(BaseException):
    """An unexpected error: not an `Exception`."""


class LeakyScorer:
    """Prints all texts, and fails as they request, always with the text in its error message."""

    Options = SemanticOptions
    main_option = None
    runs_on_gpu = False

    def __init__(self, name: str, options: SemanticOptions, execution: Execution) -> None:
        self.name = name
        self.fingerprint = "leaky-1"
        self._execution = execution

    def applies(self, document: Document) -> bool:
        return True

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        return [self._score(each) for each in documents]

    def _score(self, document: Document) -> NDArray[np.float32] | ScoringError:
        text = document.text
        sys.stdout.write(text)
        sys.stderr.write(text)
        warnings.warn(text, stacklevel=1)
        logging.getLogger("leaky").error(text)
        os.write(2, text.encode() + b"\n")
        for stream in (sys.stdout, sys.stderr, sys.__stderr__):
            stream.flush()
        action = text.split()[-1] if text.split() else ""
        if action == "RAISE":
            raise ValueError(text)
        if action == "RAISE-OS":
            raise OSError(5, text, text)
        if action == "RAISE-USER":
            raise UserError(text)
        if action == "RAISE-BASE":
            raise BadError(text)
        if action == "EXIT":
            sys.exit(text)
        if action == "SLOW":
            return attempt(_sleep, document, self._execution.deadline_s)
        if action == "SEGFAULT":
            ctypes.string_at(0)
        if action == "ABORT":
            os.abort()
        if action == "HANG":
            time.sleep(1000)
        return np.diff(document.ends, prepend=0).astype(np.float32)


def _sleep(document: Document) -> NDArray[np.float32]:
    time.sleep(1000)
    raise AssertionError(document.text)


def install(packages: Path) -> None:
    """Install the scorer beside the probe (`tests.pipeline.probe.install`)."""
    metadata = packages / "phf_leaky-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (metadata / "METADATA").write_text(METADATA)


def cut_stream() -> bytes:
    """A compressed file of records that ends early."""
    lines = "".join(json.dumps({"id": str(number), "text": f"{CANARY} {number}."}) + "\n" for number in range(50))
    return gzip.compress(lines.encode())[:-20]


def forms() -> set[bytes]:
    """Pieces of the canary in the encodings and escapings in which files may contain it."""
    found = set()
    pieces = [text[start : start + 8] for text in (ASCII, OTHER) for start in range(len(text) - 7)]
    for piece in pieces:
        found |= {piece.encode(), piece.encode("utf-16-le"), piece.encode("utf-16-be")}
        found |= {json.dumps(piece)[1:-1].encode(), piece.encode().hex().encode(), ascii(piece)[1:-1].encode()}
        found |= {urllib.parse.quote(piece).encode(), repr(piece.encode())[2:-1].encode()}
    # In base64 three bytes are four characters: encode at every offset, and drop the ends.
    for text in (ASCII, OTHER):
        for shift in range(3):
            whole = base64.b64encode(b"x" * shift + text.encode())
            found |= {whole[start : start + 16] for start in range(4, len(whole) - 20, 4)}
    return {form for form in found if len(form) >= 8}


def traces(data: bytes, looked_for: set[bytes]) -> list[bytes]:
    """Pieces of the canary that are in the data."""
    return [form for form in looked_for if form in data]


def leaks(paths: Sequence[Path], allowed: Sequence[str] = ()) -> Iterator[str]:
    """Every place below the paths with the canary, except in allowed JSON keys and Parquet columns."""
    looked_for = forms()
    for root in paths:
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            found = traces(str(path).encode(), looked_for)
            if path.is_file() and not path.is_symlink():
                for data in _contents(path, allowed):
                    found += traces(data, looked_for)
            if found:
                yield f"{path}: {found[:3]}"


def _contents(path: Path, allowed: Sequence[str]) -> Iterator[bytes]:
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield repr(table.schema.metadata).encode()
        yield json.dumps(_without(table.to_pylist(), allowed), default=str).encode()
    if path.suffix == ".json" and allowed:
        yield json.dumps(_without(json.loads(path.read_bytes()), allowed)).encode()
    elif path.suffix != ".parquet" or not allowed:
        yield path.read_bytes()


def _without(value: Any, keys: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(each, keys) for key, each in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(each, keys) for each in value]
    return value
