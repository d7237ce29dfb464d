"""What is not in a dataset: where each record lies in the inputs, and why it is in quarantine; never its text."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from pipeline.dataset import LabelledDataset


@dataclass(frozen=True)
class Entry:
    """A record, or the rest of a source that could not be read from a position on: its place, and why it is left out.

    Attributes:
        source, position: as in the dataset's rows.
        reason: one word, by which the ledger counts.
        detail: more about it.
    """

    source: str
    position: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Quarantine:
    """The first entries of a dataset's quarantine, and how many there are.

    Attributes:
        uri: of the dataset.
        entries: in the order of sources and records.
        total: all there are.
        reasons: records by reason; sources that end early are in none.
    """

    uri: str
    entries: list[Entry]
    total: int
    reasons: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "dataset": self.uri,
            "total": self.total,
            "reasons": dict(self.reasons),
            "entries": [asdict(each) for each in self.entries],
        }


def read_quarantine(dataset: LabelledDataset, limit: int | None) -> Quarantine:
    """Read the first `limit` entries, or all where it is None.

    Raises:
        DamagedError: a file of them is damaged.
        UserError: the dataset was tagged anew since it was opened.
    """
    ledger = dataset.manifest.ledger
    rows = (row for batch in dataset.read_quarantine() for row in batch.to_pylist())
    entries = [Entry(**row) for row in islice(rows, limit)]
    return Quarantine(dataset.uri, entries, sum(ledger.quarantined.values()) + ledger.sources_cut, ledger.quarantined)
