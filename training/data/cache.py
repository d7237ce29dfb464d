"""Where what is derived from a dataset lives, and how it is built there once, by one process, whole or not at all."""

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
# Of folders with tokenizers that were trained because none was given; the number of entries asked for follows.
TOKENIZER_PREFIX = "tokenizer-"

# Of a labelling job's configuration, what changes tags and files but no text, sentence or score.
_NOT_CONTENT = {"thresholds", "shard_size", "quarantine_text"}


def dataset_identity(manifest: Manifest, columns: Collection[str] | None = None) -> str:
    """A hash of all that decides a dataset's texts, sentences and scores; not of thresholds, tags or generations.

    Args:
        manifest: of the dataset.
        columns: whose scores are meant, so that the hash stays when others are added; None for all.
    """
    ledger = manifest.ledger
    meant = manifest.scorers if columns is None else columns
    # What the job was asked for tells of all columns; what came of it, the scorers' entries, of those that are meant.
    left_out = _NOT_CONTENT if columns is None else _NOT_CONTENT | {"scorers"}
    return digest(
        {
            "sources": [source.model_dump(exclude={"unread"}) for source in manifest.sources],
            "scorers": [
                [name, entry.model_dump(mode="json")] for name, entry in manifest.scorers.items() if name in meant
            ],
            "config": {name: value for name, value in manifest.config.items() if name not in left_out},
            "records": [ledger.records, ledger.labelled, ledger.empty, ledger.quarantined],
            "totals": [manifest.rows, manifest.sentences, manifest.bytes_text],
        }
    )


def digest(content: Any) -> str:
    """128 bits of the SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def derived_place(dataset_uri: str, name: str) -> Path:
    """`DATASET.tokens/NAME` beside a local dataset; in the user's cache for one elsewhere, or where nobody can write.

    The cache is `$PHF_CACHE`, else `$XDG_CACHE_HOME/phf`, else `~/.cache/phf`.

    Raises:
        UserError: there is a link at that place, which may have come with the dataset.
    """
    local = _local_path(dataset_uri)
    if local is not None:
        folder = local.resolve()
        beside = folder.with_name(f"{folder.name}.tokens")
        for place in (beside, beside / name):
            if place.is_symlink():
                raise UserError(
                    f"{place} is a link, and nobody named it. Name the store that it leads to (--store, data.store), "
                    "and the tokenizer (--tokenizer), or put a folder in its place."
                )
        if (beside / name).exists() or os.access(beside if beside.exists() else folder.parent, os.W_OK):
            return beside / name
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get(CACHE_VARIABLE) or f"{base}/phf") / "tokens" / name


def moved_data(data: DataConfig, dataset: str | None) -> DataConfig:
    """The settings of a dataset that lies at `dataset` now, if that is given.

    A tokenizer that was trained for a run lies beside its main dataset, and has moved with it. Where it is gone and
    was trained on that dataset alone, it is left out, so that it is trained again: the same texts give the same one.
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
    """Whether the tokenizer is one that was trained on the dataset alone, because none was given."""
    if data.tokenizer is None:
        return not data.mixture
    place = Path(data.tokenizer)
    return not data.mixture and place.is_absolute() and place.name.startswith(f"{TOKENIZER_PREFIX}{data.vocab_size}-")


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Have `target` built unless it is there; who comes second waits for the first, and finds it.

    Args:
        target: a folder.
        build: fills an empty folder, which then becomes `target` in one step, synced to the disk before.

    Raises:
        UserError: the place cannot be written.
    """
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}.building")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if target.exists():
                return
            # Under the lock, what lies here is of a process that was killed.
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
            # Its last holder has deleted the file that we waited for; somebody else may hold a lock on a new one.
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
