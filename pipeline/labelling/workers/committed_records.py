"""Read committed units as records for more scorers: `phf score` reads these instead of the inputs."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config import LabelConfig, read_fields
from pipeline.corpus.plan import Plan, Unit
from pipeline.corpus.records import Record
from pipeline.job.unit_rows import read_rows
from pipeline.job.unit_store import UnitStore
from pipeline.storage.base import Storage


class CommittedReader:
    """Reads units of the first layer of a job."""

    def __init__(self, storage: Storage, plan: Plan, config: LabelConfig) -> None:
        self._store = UnitStore(storage)
        self._plan = plan
        self._given = read_fields(config)

    def read(self, unit: Unit) -> Iterator[Record]:
        """Yield the labelled and empty records of a unit in order.

        Raises:
            IncompleteError: a part of the unit is missing or damaged.
            FileNotFoundError: the unit is not committed.
        """
        rows = read_rows(self._store.storage, self._store.read(unit.index), [])
        sources = {source.uri: source for source in (self._plan.sources[part.source] for part in unit.slices)}
        for row in rows.to_pylist():
            source = sources[row["source"]]
            yield Record(
                source=source.uri,
                position=row["position"],
                doc_id=row["doc_id"],
                text=row["text"],
                meta=row["meta"],
                kind=source.kind,
                name=source.uri.rpartition("/")[2] if source.format == "text" else "",
                ends=tuple(row["ends"]),
                given=self._given_of(row["meta"]),
            )

    def _given_of(self, meta: str) -> Mapping[str, Any] | None:
        """The fields that scorers read, taken from `meta`, which keeps them from the inputs."""
        if not self._given:
            return None
        fields = json.loads(meta)
        return {field: fields[field] for field in self._given if field in fields}
