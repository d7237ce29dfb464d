"""Find the records to purge: by the ids of documents, or by their keys, in the committed units of a job."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.plan import Plan
from pipeline.dataset.derived import text_hash
from pipeline.dataset.manifest import PURGED
from pipeline.job.epoch import STAGING
from pipeline.job.purged import Key
from pipeline.job.record import StoredJob
from pipeline.job.staging import committed_part
from pipeline.job.unit_records import PartFile, UnitRecord
from pipeline.job.unit_rows import read_part
from pipeline.job.unit_store import UnitStore
from pipeline.storage.base import Storage
from scorers.errors import IncompleteError, UserError
from scorers.paths import escape_path
from scorers.shell import phf

_THREADS = 8
_MOST_NAMES = 3


@dataclass
class Found:
    """Where the records are.

    Attributes:
        rows: keys of records that are rows of units, some of them perhaps in quarantine for another group's sake.
        quarantined: keys of records that are only in quarantine.
        texts: number of quarantine entries with a text.
        unlabelled: keys in units that are not committed.
        already: keys of records that are purged already.
        units: committed units that hold any of these.
        hashes: of the texts of the rows, as in a token store.
        nowhere: keys that are not of a record.
    """

    rows: set[Key] = field(default_factory=set)
    quarantined: set[Key] = field(default_factory=set)
    texts: int = 0
    unlabelled: set[Key] = field(default_factory=set)
    already: set[Key] = field(default_factory=set)
    units: set[int] = field(default_factory=set)
    hashes: set[int] = field(default_factory=set)
    nowhere: set[Key] = field(default_factory=set)


def units_of(plan: Plan, keys: Collection[Key]) -> dict[int, set[Key]]:
    """The units whose slices hold these keys; a key that is in no slice is left out."""
    by_source: dict[str, list[int]] = {}
    for uri, position in keys:
        by_source.setdefault(uri, []).append(position)
    owner = np.repeat(np.arange(len(plan.units)), np.diff(plan.units.first))
    found: dict[int, set[Key]] = {}
    for index, source in enumerate(plan.sources):
        if source.uri not in by_source:
            continue
        mine = np.flatnonzero(plan.units.slices[:, 0] == index)
        _, starts, stops = plan.units.slices[mine].T
        for position in by_source[source.uri]:
            # The slices of a source are in order.
            place = int(np.searchsorted(starts, position, side="right")) - 1
            if place >= 0 and position < stops[place]:
                found.setdefault(int(owner[mine[place]]), set()).add((source.uri, position))
    return found


def check_source(plan: Plan, source: str) -> None:
    """Refuse a source that is not among the inputs.

    Raises:
        UserError: names some that are.
    """
    names = [each.uri for each in plan.sources]
    if source not in names:
        shown = ", ".join(map(escape_path, names[:_MOST_NAMES])) + (", …" if len(names) > _MOST_NAMES else "")
        raise UserError(f"--source {escape_path(source)} is not among the inputs ({shown}).")


def keys_of_ids(job: StoredJob, ids: Collection[str]) -> tuple[set[Key], int]:
    """Find the rows of committed units with one of these `doc_id`s, whatever their number.

    Returns:
        Their keys, and how many of the ids were found.

    Raises:
        IncompleteError: a unit is damaged.
        OSError: the storage fails.
    """
    wanted = pa.array(sorted(set(ids)), pa.string())
    keys: set[Key] = set()
    seen: set[str] = set()

    unmoved = _staged(job.storage)

    def search(unit: int) -> pa.Table:
        part = _placed(job.storage, UnitStore(job.storage).read(unit).parts[0], unmoved)
        return _columns(job.storage, part, ["doc_id", "source", "position"]).filter(
            pc.is_in(pc.field("doc_id"), value_set=wanted)
        )

    committed = np.flatnonzero(UnitStore(job.storage).committed(len(job.plan.units))).tolist()
    with ThreadPoolExecutor(_THREADS) as threads:
        for table in threads.map(search, committed):
            seen.update(table.column("doc_id").to_pylist())
            keys.update(zip(table.column("source").to_pylist(), table.column("position").to_pylist(), strict=True))
    return keys, len(seen)


def survey(job: StoredJob, keys: Collection[Key]) -> Found:
    """Find out where the records of some keys are.

    Raises:
        IncompleteError: a unit is damaged.
        OSError: the storage fails.
    """
    found = Found(nowhere=set(keys))
    unmoved = _staged(job.storage)
    for unit, mine in sorted(units_of(job.plan, keys).items()):
        found.nowhere -= mine
        record = _committed(job.storage, unit)
        if record is None:
            found.unlabelled |= mine
            continue
        entries = {(each.source, each.position): each for each in record.quarantined}
        rows = set()
        for key, text in _texts(job.storage, _placed(job.storage, record.parts[0], unmoved), mine):
            rows.add(key)
            found.hashes.add(text_hash(text))
        buried = {key for key in mine - rows if key in entries and entries[key].reason == PURGED}
        listed = {key for key in mine - rows - buried if key in entries}
        found.rows |= rows
        found.already |= buried
        found.quarantined |= listed
        found.texts += sum(entries[key].text is not None for key in mine & entries.keys())
        found.nowhere |= mine - rows - buried - listed
        if rows or listed:
            found.units.add(unit)
    return found


def _committed(storage: Storage, unit: int) -> UnitRecord | None:
    try:
        return UnitStore(storage).read(unit)
    except FileNotFoundError:
        return None


def _texts(storage: Storage, part: PartFile, keys: Collection[Key]) -> Iterator[tuple[Key, str]]:
    positions = pa.array({position for _, position in keys}, pa.int64())
    for whole in read_part(storage, part):
        # Few of a unit's rows are wanted: the others do not become Python objects.
        table = whole.filter(pc.is_in(whole.column("position"), value_set=positions))
        for source, position, text in zip(
            *(table.column(name).to_pylist() for name in ("source", "position", "text")), strict=True
        ):
            if (source, position) in keys:
                yield (source, position), text


def _staged(storage: Storage) -> set[str]:
    return {info.path for info in storage.list(STAGING)}


def _placed(storage: Storage, part: PartFile, staged: Collection[str]) -> PartFile:
    """The part where it is: a driver that died may have left a committed part in its staging folder."""
    if part.staged in staged and committed_part(storage, part.staged) == part:
        return part.model_copy(update={"path": part.staged})
    return part


def _columns(storage: Storage, part: PartFile, names: list[str]) -> pa.Table:
    try:
        with (
            storage.open_read(part.path) as file,
            pq.ParquetFile(file, page_checksum_verification=True) as parquet,
        ):
            return parquet.read(names)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise
        raise IncompleteError(
            f"{storage.uri}/{part.path} is damaged or missing. `{phf('repair', storage.uri)}` labels the unit again; "
            "then purge."
        ) from None
