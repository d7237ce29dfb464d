"""Check conservation: each record of the plan is exactly once in the dataset or in quarantine, or sealing fails."""

from collections import Counter
from collections.abc import Collection, Sequence

import pyarrow as pa

from pipeline.corpus.plan import Unit
from pipeline.dataset.manifest import Ledger, SourceEntry
from pipeline.job.purged import Key
from pipeline.job.unit_records import UnitRecord
from scorers.errors import IncompleteError
from scorers.shell import phf


class Conservation:
    """Checks the units in order; memory holds one number for each source that is not complete yet.

    Args:
        sources: the sources of the plan, in order, with their numbers of records.
        where: the output, for messages.
        purged: keys of records that must not be in the dataset.
    """

    def __init__(self, sources: Sequence[SourceEntry], where: str, purged: Collection[Key] = ()) -> None:
        self._sources = sources
        self._where = where
        self._purged = purged
        self._read: Counter[int] = Counter()
        self._complete = 0  # number of leading sources that are complete

    def add_unit(self, unit: Unit, record: UnitRecord, rows: pa.Table) -> None:
        """Check that each record of the next unit is exactly one row or quarantine entry, and lies in its slices.

        Of `rows`, the unit's rows in the dataset, only `source` and `position` are read.

        Raises:
            IncompleteError: the unit does not add up; names it.
        """
        kept = list(zip(rows.column("source").to_pylist(), rows.column("position").to_pylist(), strict=True))
        out = [(each.source, each.position) for each in record.quarantined]
        keys = set(kept).union(out)
        if not len(keys) == len(kept) + len(out) == record.records:
            raise self._unbalanced(
                unit,
                f"{record.records:,} records were read, but {len(kept):,} are labelled or empty and {len(out):,} "
                f"quarantined, {len(keys):,} of them different",
            )
        if self._purged and any(key in self._purged for key in kept):
            # An older driver may complete a step, such as a commit, while a purge claims the next epoch.
            raise IncompleteError(
                f"Unit {unit.name} of {self._where} holds a document that was purged, because a run that was stopped "
                f"committed it later. Run `{phf('purge', self._where)}` to remove it; it needs no ids."
            )
        slices: dict[str, list[tuple[int, int, int]]] = {}
        for part in unit.slices:
            slices.setdefault(self._sources[part.source].uri, []).append((part.source, part.start, part.stop))
        for source, position in keys:
            found = [index for index, start, stop in slices.get(source, []) if start <= position < stop]
            if not found:
                raise self._unbalanced(unit, f"record {position:,} of {source} does not belong to this unit")
            self._read[found[0]] += 1
        if unit.slices:
            self._check_sources(unit.slices[-1].source)

    def finish(self, ledger: Ledger) -> None:
        """Check that every source was read completely, and that the ledger adds up to the sources.

        Raises:
            IncompleteError: it does not add up.
        """
        self._check_sources(len(self._sources))
        planned = sum(entry.records for entry in self._sources)
        if not ledger.balanced or ledger.records != planned:
            raise IncompleteError(
                f"{self._where} does not add up and was not sealed: of {planned:,} records in the inputs "
                f"{ledger.records:,} were read, {ledger.labelled:,} are labelled, {ledger.empty:,} empty and "
                f"{sum(ledger.quarantined.values()):,} quarantined. Run `phf verify` on the output and report this."
            )

    def _check_sources(self, before: int) -> None:
        for index in range(self._complete, before):
            entry = self._sources[index]
            read = self._read.pop(index, 0)
            if read != entry.records:
                raise IncompleteError(
                    f"{self._where} does not add up and was not sealed: {entry.uri} has {entry.records:,} records, but "
                    f"its units read {read:,}. Label the corpus again into another output."
                )
        self._complete = max(self._complete, before)

    def _unbalanced(self, unit: Unit, what: str) -> IncompleteError:
        return IncompleteError(
            f"Unit {unit.name} of {self._where} does not add up and was not sealed: {what}. "
            f"`phf repair` labels the unit again."
        )
