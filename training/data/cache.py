"""The cache of what is derived from a dataset: where it lives, and how one process builds it, whole or not at all."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.dataset import Manifest
from scorers.errors import UserError
from training.config import DataConfig
from training.disk import os_errors

CACHE_VARIABLE = "PHF_CACHE"
# Folders of tokenizers that phf trained; the vocabulary size follows.
TOKENIZER_PREFIX = "tokenizer-"

# Labelling settings that change tags and files, but no text, sentence or score.
_NOT_CONTENT = {"thresholds", "shard_size", "quarantine_text"}


def dataset_identity(manifest: Manifest, columns: Collection[str] | None = None) -> str:
    """Hash everything that decides a dataset's texts, sentences and scores; not thresholds, tags or generations.

    Args:
        manifest: of the dataset.
        columns: whose scores to include, so that the hash stays the same when others are added; None for all.
    """
    ledger = manifest.ledger
    included = manifest.scorers if columns is None else columns
    # The job's settings list every scorer; the manifest's entries can be restricted to the included columns.
    left_out = _NOT_CONTENT if columns is None else _NOT_CONTENT | {"scorers"}
    return digest(
        {
            "sources": [source.model_dump(exclude={"unread"}) for source in manifest.sources],
            "scorers": [
                [name, entry.model_dump(mode="json")] for name, entry in manifest.scorers.items() if name in included
            ],
            "config": {name: value for name, value in manifest.config.items() if name not in left_out},
            "records": [ledger.records, ledger.labelled, ledger.empty, ledger.quarantined],
            "totals": [manifest.rows, manifest.sentences, manifest.bytes_text],
        }
    )


def digest(content: Any) -> str:
    """Return the first 128 bits of the SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def derived_place(dataset_uri: str, name: str) -> Path:
    """Return `DATASET.tokens/NAME` beside a local dataset, or a path in the user's cache.

    The cache (`user_cache`) serves remote datasets and folders that are not writable.

    Raises:
        UserError: the path is a link, which may have come with the dataset.
    """
    local = _local_path(dataset_uri)
    if local is not None:
        folder = local.resolve()
        beside = folder.with_name(f"{folder.name}.tokens")
        for place in (beside, beside / name):
            if place.is_symlink():
                raise UserError(
                    f"{place} is a link, and phf does not follow links that you did not name. Name the store that it "
                    "leads to (--store, data.store) and the tokenizer (--tokenizer), or put a folder in its place."
                )
        if (beside / name).exists() or os.access(beside if beside.exists() else folder.parent, os.W_OK):
            return beside / name
    return user_cache() / "tokens" / name


def user_cache() -> Path:
    """Return `$PHF_CACHE`, else `$XDG_CACHE_HOME/phf`, else `~/.cache/phf`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get(CACHE_VARIABLE) or f"{base}/phf")


def relocate_data(data: DataConfig, dataset: str | None) -> DataConfig:
    """Return the settings with the dataset's new path, if one is given.

    A tokenizer that phf trained lies beside the main dataset and moves with it. If it is missing and was trained on
    that dataset alone, the setting is cleared, so that it is trained again: the same texts give the same tokenizer.
    """
    place, tokenizer = dataset or data.dataset, data.tokenizer
    if tokenizer and Path(tokenizer).is_absolute() and not Path(tokenizer).exists():
        moved = derived_place(place, Path(tokenizer).name)
        if moved.exists():
            tokenizer = str(moved)
        elif trained_on_dataset(data):
            tokenizer = None
    return data.model_copy(update={"dataset": place, "tokenizer": tokenizer})


def trained_on_dataset(data: DataConfig) -> bool:
    """Whether phf trained the tokenizer, on this dataset alone."""
    if data.tokenizer is None:
        return not data.mixture
    place = Path(data.tokenizer)
    return not data.mixture and place.is_absolute() and place.name.startswith(f"{TOKENIZER_PREFIX}{data.vocab_size}-")


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Build the folder `target` if it is missing. Concurrent processes wait for the one that builds it.

    Args:
        target: a folder.
        build: fills an empty temporary folder, which is synced to disk and then renamed to `target`.

    Raises:
        UserError: the folder cannot be written.
    """
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}.building")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if target.exists():
                return
            # The lock is held, so anything here was left by a process that was killed.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                with os_errors():
                    build(temporary)
                for path in [*temporary.rglob("*"), temporary]:
                    _sync(path)
                temporary.rename(target)
                _sync(target.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"Cannot write {target}: {error.strerror or error}. "
            f"Choose another place (--store, --output, or the environment variable {CACHE_VARIABLE} for a default one)."
        ) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The previous holder deleted the file that we waited for; another process may hold a lock on a new one.
            if not os.fstat(file.fileno()).st_nlink:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _local_path(uri: str) -> Path | None:
    if "://" not in uri:
        return Path(uri)
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else None
