"""What is derived from a dataset and kept beside it or in the user's cache: token stores and trained tokenizers.

Training builds them (`training.data`); `phf purge` deletes those that hold a removed document.
"""

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipeline.dataset.manifest import Manifest
from scorers.errors import UserError

CACHE_VARIABLE = "PHF_CACHE"
# Folders of tokenizers that phf trained; the vocabulary size follows.
TOKENIZER_PREFIX = "tokenizer-"
# The file of a token store that describes it, and the array with a hash of each document's text.
STORE_META = "store.json"
STORE_HASHES = "text_hashes.arrow"

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
    config = {name: value for name, value in manifest.config.items() if name not in left_out}
    if columns is None and manifest.spans and isinstance(config.get("scorers"), dict):
        # Spans change no score.
        config["scorers"] = {
            column: {name: value for name, value in scorer.items() if name != "spans"}
            if isinstance(scorer, dict)
            else scorer
            for column, scorer in config["scorers"].items()
        }
    # Which documents are gone: others of the same size would leave the same totals.
    purged = {"purged": [file.sha256 for file in ledger.quarantine]} if ledger.purged else {}
    return digest(
        purged
        | {
            "sources": [source.model_dump(exclude={"unread"}) for source in manifest.sources],
            "scorers": [
                [name, entry.without_spans().model_dump(mode="json")]
                for name, entry in manifest.scorers.items()
                if name in included
            ],
            "config": config,
            "records": [ledger.records, ledger.labelled, ledger.empty, ledger.quarantined],
            "totals": [manifest.rows, manifest.sentences, manifest.bytes_text],
        }
    )


def digest(content: Any) -> str:
    """Return the first 128 bits of the SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def text_hash(text: str) -> int:
    """The hash of a document's text in a token store: the first 8 bytes, little-endian, of BLAKE2b-64 of its UTF-8."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def folder_beside(dataset_uri: str) -> Path | None:
    """Return `DATASET.tokens`, the folder beside a local dataset; None for a remote one."""
    local = _local_path(dataset_uri)
    if local is None:
        return None
    folder = local.resolve()
    return folder.with_name(f"{folder.name}.tokens")


def folder_in_cache() -> Path:
    """Return the folder in the user's cache that serves remote datasets and folders that are not writable."""
    return user_cache() / "tokens"


def derived_place(dataset_uri: str, name: str) -> Path:
    """Return `DATASET.tokens/NAME` beside a local dataset, or a path in the user's cache.

    The cache (`user_cache`) serves remote datasets and folders that are not writable.

    Raises:
        UserError: the path is a link, which may have come with the dataset.
    """
    beside = folder_beside(dataset_uri)
    if beside is not None:
        for place in (beside, beside / name):
            if place.is_symlink():
                raise UserError(
                    f"{place} is a link, and phf does not follow links that you did not name. Name the store that it "
                    "leads to (--store, data.store) and the tokenizer (--tokenizer), or put a folder in its place."
                )
        if (beside / name).exists() or os.access(beside if beside.exists() else beside.parent, os.W_OK):
            return beside / name
    return folder_in_cache() / name


def user_cache() -> Path:
    """Return `$PHF_CACHE`, else `$XDG_CACHE_HOME/phf`, else `~/.cache/phf`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get(CACHE_VARIABLE) or f"{base}/phf")


def _local_path(uri: str) -> Path | None:
    if "://" not in uri:
        return Path(uri)
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else None
