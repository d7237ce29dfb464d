"""Tombstones: the keys of the records that `phf purge` removed, which no later run labels again.

Each purge adds a file (`job/purged/0001.json`, …). The job's record says how many there are: it is the commit point.
A tombstone holds the source and the position of a record, and not its id, which may be personal data.
"""

from collections.abc import Collection, Iterable

from pydantic import BaseModel, ConfigDict, Field

from pipeline.corpus.records import Quarantined
from pipeline.dataset.manifest import PURGED
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import from_checked, to_checked
from scorers.errors import UserError
from scorers.paths import UnsafePathError
from scorers.stored import Count

TOMBSTONES = "job/purged"

Key = tuple[str, int]
"""Source and position of a record."""


class Tombstones(BaseModel):
    """The content of a file.

    Attributes:
        positions: of the removed records, sorted, by source.
        dataset: identity of the sealed dataset that they were in, by which token stores are found; None if it was not
            sealed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    positions: dict[str, list[Count]] = Field(min_length=1)
    dataset: str | None = None

    @property
    def keys(self) -> frozenset[Key]:
        """The keys of the records."""
        return frozenset((source, position) for source, each in self.positions.items() for position in each)


def tombstones_path(number: int) -> str:
    """Path of the file of a purge."""
    return f"{TOMBSTONES}/{number:04d}.json"


def write_tombstones(storage: Storage, number: int, keys: Collection[Key], dataset: str | None) -> None:
    """Write the file of a purge; it counts once the job's record does.

    Raises:
        OSError: the storage fails.
    """
    positions: dict[str, list[int]] = {}
    for source, position in sorted(keys):
        positions.setdefault(source, []).append(position)
    storage.put(tombstones_path(number), to_checked(Tombstones(positions=positions, dataset=dataset)))


def read_purged(storage: Storage, purges: int) -> frozenset[Key]:
    """Read the keys of all records that the job's purges removed.

    Raises:
        UserError: a file is missing or damaged.
        OSError: the storage fails.
    """
    return frozenset[Key]().union(*(_read(storage, number).keys for number in range(1, purges + 1)))


def read_identities(storage: Storage, purges: int) -> set[str]:
    """Read the identities of the datasets from which the job's purges removed records; errors as in `read_purged`."""
    return {found for number in range(1, purges + 1) if (found := _read(storage, number).dataset) is not None}


def _read(storage: Storage, number: int) -> Tombstones:
    try:
        return from_checked(Tombstones, storage.read(tombstones_path(number)))
    except (FileNotFoundError, ValueError, UnsafePathError):
        raise UserError(
            f"{storage.uri}/{tombstones_path(number)} is damaged or missing. Without it, a later run could label "
            "documents again that were purged. Restore it from a copy."
        ) from None


def tombstone(key: Key) -> Quarantined:
    """The quarantine entry of a removed record."""
    return Quarantined(*key, PURGED)


def purged_among(entries: Iterable[Quarantined]) -> int:
    """The number of tombstones among quarantine entries."""
    return sum(each.reason == PURGED for each in entries)
