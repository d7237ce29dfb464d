"""Delete the token stores that hold purged documents: beside the dataset, and in the user's cache."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.dataset.derived import STORE_HASHES, STORE_META, TOKENIZER_PREFIX, folder_beside, folder_in_cache
from scorers.errors import IncompleteError
from scorers.stored import read_stored

# A store that is being deleted; a purge that died leaves it.
_GONE = ".purged"
_BUILDING = ".building"


@dataclass
class Derived:
    """What was built from a dataset.

    Attributes:
        stores: token stores that hold, or may hold, purged documents: all beside the dataset, and those in the cache
            that were built from it or hold a purged text.
        tokenizers: tokenizers that were trained beside it; they are kept, since models need them.
        links: entries that are links, which are not followed.
    """

    stores: list[Path] = field(default_factory=list)
    tokenizers: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)


def find_derived(uri: str, identities: Collection[str], hashes: Collection[int]) -> Derived:
    """Find what was built from a dataset.

    Args:
        uri: the dataset.
        identities: what `dataset_identity` gives for it, before the purge.
        hashes: of the purged texts (`text_hash`).

    Raises:
        IncompleteError: a folder cannot be read.
    """
    found = Derived()
    beside = folder_beside(uri)
    try:
        for folder in (beside, folder_in_cache()):
            for place in _children(folder, found):
                if place.name.startswith(TOKENIZER_PREFIX):
                    if folder == beside:
                        found.tokenizers.append(place)
                elif place.name.startswith("."):
                    if place.name.endswith(_GONE) or (place.name.endswith(_BUILDING) and not _is_locked(place)):
                        found.stores.append(place)
                elif (place / STORE_META).is_file() and (folder == beside or _holds(place, identities, hashes)):
                    found.stores.append(place)
    except OSError as error:
        raise IncompleteError(
            f"{error.filename} cannot be read: {error.strerror}. Run the same command again."
        ) from None
    return found


def delete_stores(stores: Collection[Path]) -> None:
    """Delete token stores. A store disappears at once, so that no run finds a part of one.

    Raises:
        IncompleteError: one cannot be deleted.
    """
    for place in stores:
        try:
            gone = place if place.name.endswith(_GONE) else place.with_name(f".{place.name.lstrip('.')}{_GONE}")
            if gone != place:
                shutil.rmtree(gone, ignore_errors=True)
                place.rename(gone)
            shutil.rmtree(gone)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise IncompleteError(
                f"The token store {place} cannot be deleted: {error.strerror or error}. Fix that and run the same "
                "command again."
            ) from None


def _children(folder: Path | None, found: Derived) -> Iterator[Path]:
    if folder is None or not folder.exists():
        return
    if folder.is_symlink():
        found.links.append(folder)
        return
    for place in sorted(folder.iterdir()):
        if place.is_symlink():
            found.links.append(place)
        elif place.is_dir():
            yield place


def _holds(store: Path, identities: Collection[str], hashes: Collection[int]) -> bool:
    """Whether a store was built from the dataset or holds a purged text; a damaged one is taken for one that does."""
    try:
        meta = json.loads(read_stored(store / STORE_META))
        if isinstance(meta, dict) and meta.get("dataset") in identities:
            return True
        if not hashes:
            return False
        with pa.memory_map(str(store / STORE_HASHES)) as source:
            column = pa.ipc.open_file(source).get_batch(0).column(0)
            column.validate()
            return bool(np.isin(column.to_numpy(), np.array(sorted(hashes), np.uint64)).any())
    except (OSError, ValueError, RecursionError, pa.ArrowException):
        return True


def _is_locked(building: Path) -> bool:
    """Whether a process is building the store."""
    lock = building.with_name(building.name.removesuffix(_BUILDING) + ".lock")
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False
