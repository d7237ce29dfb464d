"""The rows of committed units as records to be scored again by others: what `phf score` reads instead of the inputs."""

from collections.abc import Iterator

from pipeline.corpus.plan import Plan, Unit
from pipeline.corpus.records import Record
from pipeline.storage import Storage
from pipeline.units.rows import read_rows
from pipeline.units.store import UnitStore


class CommittedReader:
    """Reads units of the first layer of a job."""

    def __init__(self, storage: Storage, plan: Plan) -> None:
        self._store = UnitStore(storage)
        self._plan = plan

    def read(self, unit: Unit) -> Iterator[Record]:
        """The labelled and empty records of a unit in order.

        Raises:
            IncompleteError: a part of the unit is missing or damaged.
            FileNotFoundError: it is not committed.
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
            )
