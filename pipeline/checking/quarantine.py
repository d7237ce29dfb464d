"""List the quarantine of a dataset: the place of each record in the inputs and the reason, never its text."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from pipeline.dataset import LabelledDataset


@dataclass(frozen=True)
class Entry:
    """A quarantined record, or the unreadable rest of a source from a position on.

    Attributes:
        source, position: as in the rows of the dataset.
        reason: a keyword, by which the ledger counts.
        detail: details for people.
    """

    source: str
    position: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Quarantine:
    """The first entries of a dataset's quarantine, and the total number.

    Attributes:
        uri: the dataset.
        entries: in the order of sources and records.
        total: the number of all entries.
        reasons: number of records by reason; sources that end early are not included.
    """

    uri: str
    entries: list[Entry]
    total: int
    reasons: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "dataset": self.uri,
            "total": self.total,
            "reasons": dict(self.reasons),
            "entries": [asdict(each) for each in self.entries],
        }


def read_quarantine(dataset: LabelledDataset, limit: int | None) -> Quarantine:
    """Read the first `limit` entries, or all if it is None.

    Raises:
        DamagedError: a file of the quarantine is damaged.
        UserError: the dataset has been retagged since it was opened.
    """
    ledger = dataset.manifest.ledger
    rows = (row for batch in dataset.read_quarantine() for row in batch.to_pylist())
    entries = [Entry(**row) for row in islice(rows, limit)]
    return Quarantine(dataset.uri, entries, sum(ledger.quarantined.values()) + ledger.sources_cut, ledger.quarantined)
