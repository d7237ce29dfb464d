"""Create committed units without running a labelling job, as input for sealing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import LabelConfig
from pipeline.corpus.inputs import Source
from pipeline.corpus.plan import Plan, Units
from pipeline.corpus.records import Quarantined
from pipeline.dataset.manifest import Manifest, ScorerEntry, SourceEntry
from pipeline.dataset.schema import unit_schema
from pipeline.job.epoch import Epoch
from pipeline.job.plan_files import write_plan
from pipeline.job.record import JOB, JobRecord, StoredJob
from pipeline.job.unit_records import PartFile, UnitRecord
from pipeline.job.unit_store import UnitStore
from pipeline.sealing.seal import Progress, contents_of, seal
from pipeline.sealing.staged import StagedFiles
from pipeline.storage.checked_json import to_checked
from pipeline.storage.open import open_storage
from tests.datasets import SOURCE, sentences_of

Row = Mapping[str, Any]


@dataclass
class Labelled:
    """An output folder whose units are all committed, and the arguments for sealing it."""

    folder: Path
    epoch: Epoch
    config: LabelConfig
    plan: Plan
    scorers: dict[str, ScorerEntry]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write_job(self) -> None:
        """Write the job's record and plan, for commands that need them."""
        job = self.job()
        job.storage.put(JOB, to_checked(job.record))
        write_plan(job.storage, 1, self.config.inputs, self.plan)

    def job(self) -> StoredJob:
        record = JobRecord(config=self.config.semantic(), scorers=self.scorers, sentences="of-the-tests")
        return StoredJob(self.epoch.storage, record, [], self.plan)

    def seal(
        self, generation: int = 1, thresholds: Mapping[str, float | str] | None = None, progress: Progress | None = None
    ) -> Manifest:
        contents = contents_of(self.job(), [1], thresholds or {})
        return seal(self.epoch, contents, generation=generation, progress=progress)


def commit_units(
    folder: Path | str,
    units: Sequence[Sequence[Row]],
    columns: Sequence[str] = ("toxicity",),
    *,
    thresholds: Mapping[str, float | str] | None = None,
    shard_size: int = 1_000_000,
    own_groups: Sequence[str] = (),
    quarantined: Mapping[int, Sequence[Quarantined]] | None = None,
    only_in_base: Sequence[int] = (),
    cut: Sequence[Quarantined] = (),
) -> Labelled:
    """Commit units of rows such as `{"text": "One. Two.", "toxicity": [0.1, 0.2]}`; positions count through all units.

    `own_groups` are columns with parts of their own, like those of a scorer on a GPU. `quarantined` is by unit; the
    position of a quarantined record is in no row, unless it is in `only_in_base`: then the base group has labelled it.
    """
    storage = open_storage(str(folder))
    epoch = Epoch.claim(storage)
    store = UnitStore(storage)
    files = StagedFiles(storage, store.folder)
    base = [column for column in columns if column not in own_groups]
    position, out = 0, []
    slices: list[list[tuple[int, int, int]]] = []
    taken = {each.position for entries in (quarantined or {}).values() for each in entries} - set(only_in_base)
    for index, unit in enumerate(units):
        rows = []
        for given in unit:
            while position in taken:
                position += 1
            ends = np.cumsum([len(each) for each in sentences_of(given["text"], "prose")], dtype=np.int32)
            key = {"doc_id": f"doc-{position}", "source": SOURCE, "position": position}
            rows.append({**key, "meta": json.dumps({"n": position}), "ends": ends, **given})
            position += 1
        entries = list((quarantined or {}).get(index, []))
        keys = {each.position for each in entries}
        kept = [row for row in rows if row["position"] not in keys]
        out += kept
        places = [row["position"] for row in rows] + [each.position for each in entries]
        slices.append([(0, min(places), max(places) + 1)] if places else [])
        parts = []
        for group, names, rows_of_part in [("cpu", base, rows), *((each, [each], kept) for each in own_groups)]:
            schema = unit_schema(names)
            if group != "cpu":
                schema = pa.schema([schema.field(name) for name in ("source", "position", group)])
            table = pa.Table.from_pylist(rows_of_part, schema=schema)
            path = store.part_path(index, group)
            file = files.write_parquet(path.removeprefix(f"{store.folder}/"), schema, [table])
            parts.append(
                PartFile(group=group, staged="", path=path, size=file.size, sha256=file.sha256, rows=table.num_rows)
            )
        record = UnitRecord(
            unit=index,
            epoch=1,
            parts=parts,
            records=len(kept) + len(entries),
            empty=0,
            sentences=0,
            bytes_text=0,
            quarantined=entries,
        )
        storage.put(store.record_path(index), to_checked(record))
    records = len(out) + sum(map(len, (quarantined or {}).values()))
    plan = Plan(
        sources=[Source(SOURCE, "jsonl", None, "prose", 1)],
        entries=[SourceEntry(uri=SOURCE, size=1, sha256="0" * 64, records=records)],
        units=Units.of(slices),
        cut=list(cut),
    )
    config = LabelConfig.model_validate(
        {
            "inputs": [SOURCE],
            "output": str(folder),
            "scorers": {column: {"kind": "linear"} for column in columns},
            "thresholds": dict(thresholds or {}),
            "shard_size": shard_size,
        }
    )
    scorers = {column: ScorerEntry(kind="linear", options={}, fingerprint=f"{column}-1") for column in columns}
    return Labelled(Path(folder), epoch, config, plan, scorers, out)


def bytes_below(folder: Path, name: str) -> dict[str, bytes]:
    """Every file below `folder/name`, by its path relative to `folder`."""
    found = sorted(path for path in (folder / name).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
