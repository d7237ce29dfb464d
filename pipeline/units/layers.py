"""The layers of a job as one: of each unit, the parts and the quarantine of all of them."""

from collections.abc import Iterator, Sequence

from pipeline.corpus.records import Quarantined
from pipeline.units.records import UnitRecord
from pipeline.units.store import UnitStore


def joined_records(layers: Sequence[UnitStore], units: int) -> Iterator[UnitRecord]:
    """Of each of the first `units` units, in order, one record for those of all layers.

    Raises:
        IncompleteError: a unit is not committed in one of the layers, or a record is damaged.
    """
    for records in zip(*(layer.records(units) for layer in layers), strict=True):
        yield join_records(records)


def join_records(records: Sequence[UnitRecord]) -> UnitRecord:
    """One record of a unit that stands for those of several layers.

    What was read is what the first layer read; a later one reads its rows. A record is in quarantine once, for the
    first layer that put it there.
    """
    first = records[0]
    if len(records) == 1:
        return first
    quarantined: dict[tuple[str, int], Quarantined] = {}
    for record in records:
        for each in record.quarantined:
            quarantined.setdefault((each.source, each.position), each)
    return first.model_copy(
        update={
            "parts": [part for record in records for part in record.parts],
            "quarantined": list(quarantined.values()),
        }
    )
