"""Resume a job of a million units: find its committed units by segments, against listing its folders unit by unit."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.measure import Comparison, compare

UNITS = 1_000_000
LISTED = 20_000


def run() -> Iterator[Comparison]:
    from pipeline.corpus.inputs import Source
    from pipeline.corpus.plan import Plan, Units
    from pipeline.dataset.manifest import SourceEntry
    from pipeline.job.epoch import Epoch
    from pipeline.job.plan_files import read_plan, write_plan
    from pipeline.job.unit_store import FOLDER_UNITS, UnitStore
    from pipeline.labelling.commit import Committer
    from pipeline.storage.open import open_storage

    with tempfile.TemporaryDirectory() as name:
        storage = open_storage(name)
        starts = np.arange(UNITS, dtype=np.int64) * 262_144
        slices = np.column_stack([np.zeros(UNITS, np.int64), starts, starts + 262_144])
        size = UNITS * 262_144
        plan = Plan(
            [Source("corpus.jsonl", "jsonl", None, "prose", size)],
            [SourceEntry(uri="corpus.jsonl", size=size, sha256="0" * 64, records=UNITS * 100)],
            Units(np.arange(UNITS + 1, dtype=np.int64), slices),
        )
        write_plan(storage, 1, ["corpus.jsonl"], plan)
        store = UnitStore(storage)
        # All but the last folder are complete.
        full = UNITS // FOLDER_UNITS - 1
        for folder in range(full):
            first = folder * FOLDER_UNITS
            storage.put(store.segment_path(folder), _segment(store, range(first, first + FOLDER_UNITS)))
        epoch = Epoch.claim(storage)

        def resume() -> None:
            stored = read_plan(storage)
            assert stored is not None
            committed = Committer(epoch, store).recover(len(stored.plan.units), ["cpu"])
            assert int(committed.sum()) == full * FOLDER_UNITS

        def sums() -> None:
            store.totals(UNITS)

        for what, work in (("plan and committed units", resume), ("totals for `phf status`", sums)):
            start = time.perf_counter()
            work()
            print(f"  {UNITS:,} units, {what}: {time.perf_counter() - start:.1f} s")  # noqa: T201

        listed = UnitStore(storage, layer=2)
        for unit in range(LISTED):
            for path in (listed.record_path(unit), listed.part_path(unit, "cpu")):
                file = Path(name) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()

        yield compare(
            f"committed units of {LISTED:,}, against a listing",
            "units/s",
            LISTED,
            lambda: store.committed(LISTED),
            lambda: listed.committed(LISTED),
        )


def _segment(store: object, units: range) -> bytes:
    from pipeline.job.unit_records import PartFile, UnitRecord, to_segment
    from pipeline.job.unit_store import UnitStore

    assert isinstance(store, UnitStore)
    return to_segment(
        UnitRecord(
            unit=unit,
            epoch=1,
            parts=[
                PartFile(
                    group="cpu",
                    staged=f"staging/00000001/{unit:08d}.cpu.{unit}.parquet",
                    path=store.part_path(unit, "cpu"),
                    size=100_000 + unit % 1000,
                    sha256=f"{unit * 2654435761 % 2**64:064x}",
                    rows=100,
                )
            ],
            records=100,
            empty=0,
            sentences=2_000,
            bytes_text=250_000,
            quarantined=[],
        )
        for unit in units
    )
