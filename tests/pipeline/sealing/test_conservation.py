"""Sealing requires a balanced ledger, and labelling yields one for every corpus."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.plan import Slice, Unit
from pipeline.corpus.records import Quarantined
from pipeline.dataset.manifest import Ledger, ScorerEntry, SourceEntry
from pipeline.job.epoch import Epoch
from pipeline.job.record import JobRecord, StoredJob
from pipeline.job.unit_records import UnitRecord
from pipeline.job.unit_store import UnitStore
from pipeline.labelling.commit import Committer
from pipeline.labelling.resolve import BASE_GROUP, ResolvedJob
from pipeline.labelling.workers.worker import UnitLabeller
from pipeline.sealing.conservation import Conservation
from pipeline.sealing.seal import contents_of, seal
from pipeline.storage.open import open_storage
from scorers import registry
from scorers.errors import IncompleteError
from tests.pipeline.corpora import make_config, write_lines
from tests.pipeline.simulation import PART
from tests.pipeline.toy_scorers import ToyScorer

SOURCES = [
    SourceEntry(uri=uri, size=1, sha256="0" * 64, records=records) for uri, records in (("a", 3), ("b", 0), ("c", 2))
]
UNITS = [Unit(0, (Slice(0, 0, 2),)), Unit(1, (Slice(0, 2, 3), Slice(2, 0, 2)))]
KEYS = [[("a", 0), ("a", 1)], [("a", 2), ("c", 0), ("c", 1)]]


def add(
    check: Conservation, unit: int, kept: Sequence[Any], out: Sequence[Any] = (), records: int | None = None
) -> None:
    record = UnitRecord(
        unit=unit,
        epoch=1,
        parts=[PART],
        records=len(kept) + len(out) if records is None else records,
        empty=0,
        sentences=0,
        bytes_text=0,
        quarantined=[Quarantined(source, position, "x") for source, position in out],
    )
    rows = pa.table({"source": [key[0] for key in kept], "position": pa.array([key[1] for key in kept], pa.int64())})
    check.add_unit(UNITS[unit], record, rows)


@pytest.fixture
def check() -> Conservation:
    return Conservation(SOURCES, "out")


def test_rows_and_quarantine_together_are_all_records(check: Conservation) -> None:
    add(check, 0, KEYS[0][:1], KEYS[0][1:])
    add(check, 1, [], KEYS[1])
    check.finish(Ledger(units=1, records=5, labelled=1, empty=0, quarantined={"x": 4}))


@pytest.mark.parametrize(
    ("kept", "out", "records", "what"),
    [
        (KEYS[0][:1], [], 2, "2 records were read, but 1 are labelled or empty and 0 quarantined"),
        (KEYS[0], KEYS[0][:1], 3, "3 records were read, but 2 are labelled or empty and 1 quarantined, 2 of them"),
        ([("a", 0), ("a", 0)], [], 2, "1 of them different"),
        ([("a", 0), ("a", 2)], [], 2, "record 2 of a does not belong to this unit"),
        ([("a", 0), ("b", 0)], [], 2, "record 0 of b does not belong to this unit"),
        ([("a", 0)], [("z", 1)], 2, "record 1 of z does not belong to this unit"),
    ],
)
def test_a_unit_that_does_not_add_up_is_named(
    check: Conservation, kept: Sequence[Any], out: Sequence[Any], records: int, what: str
) -> None:
    with pytest.raises(IncompleteError, match=r"Unit 00000000 of out does not add up") as caught:
        add(check, 0, kept, out, records)
    assert what in str(caught.value)


def test_a_source_with_missing_records_is_named(check: Conservation) -> None:
    add(check, 0, KEYS[0][:1])
    with pytest.raises(IncompleteError, match=r"out does not add up .* a has 3 records, but its units read 2"):
        add(check, 1, KEYS[1])


def test_a_missing_end_of_the_last_source_is_noticed(check: Conservation) -> None:
    add(check, 0, KEYS[0])
    add(check, 1, KEYS[1][:2])
    with pytest.raises(IncompleteError, match="c has 2 records, but its units read 1"):
        check.finish(Ledger(units=1, records=4, labelled=4, empty=0))


@pytest.mark.parametrize(
    "ledger",
    [Ledger(units=1, records=5, labelled=4, empty=0), Ledger(units=1, records=4, labelled=4, empty=0)],
    ids=repr,
)
def test_a_ledger_that_does_not_add_up_is_refused(check: Conservation, ledger: Ledger) -> None:
    add(check, 0, KEYS[0])
    add(check, 1, KEYS[1])
    with pytest.raises(IncompleteError, match="was not sealed: of 5 records"):
        check.finish(ledger)


TEXTS = ["One. Two.", "", "SKIP it.", "POISON.", "REFUSE.", "ASK.", "INVALID!", "Grüße! " * 9, "x" * 70 + ". y."]
lines = st.one_of(
    st.sampled_from(TEXTS).map(lambda text: json.dumps({"text": text}).encode()),
    st.sampled_from(
        [b"{", b"[]", b"{}", b'{"text": 1}', b'{"text": "\\ud800"}', b"\xff", b" ", b"", b'"' + b"x" * 999]
    ),
)


@settings(max_examples=25)
@given(
    files=st.lists(st.lists(lines, max_size=12), min_size=1, max_size=4),
    suffix=st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst"]),
    unit_size=st.integers(1, 400),
)
def test_every_record_is_in_the_dataset_or_in_quarantine_once(
    files: list[list[bytes]], suffix: str, unit_size: int
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.KINDS, "toy", f"{ToyScorer.__module__}:ToyScorer")
        corpus, output = Path(name) / "corpus", Path(name) / "out"
        corpus.mkdir()
        for index, content in enumerate(files):
            if content and not any(map(_is_object, content)):
                content.append(b"{}")  # a file without a single object is refused as another format
            write_lines(corpus / f"{index}{suffix}", b"".join(line + b"\n" for line in content))
        config = make_config(
            corpus,
            output=str(output),
            scorers={"toy": {"kind": "toy"}},
            unit_size=unit_size,
            max_record_size=500,
            max_document_size=50,
        )
        expected, found = (
            _keys(files, suffix),
            _label(ResolvedJob(config, make_plan(config), GROUPS, {})),
        )
        assert sorted(found) == sorted((str(corpus / f"{index}{suffix}"), position) for index, position in expected)


GROUPS = {BASE_GROUP: ["toy"]}


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _keys(files: list[list[bytes]], suffix: str) -> list[tuple[int, int]]:
    """Source and position of every line that is not blank: its offset in a plain file, else its index."""
    keys = []
    for index, content in enumerate(files):
        offset = count = 0
        for line in content:
            if line.strip():
                keys.append((index, offset if suffix == ".jsonl" else count))
                count += 1
            offset += len(line) + 1
    return keys


def _label(job: ResolvedJob) -> list[tuple[str, int]]:
    """Label, commit and seal without Ray; return the keys of all rows in `data/` and of all quarantined records."""
    output = job.config.output
    storage = open_storage(output)
    epoch = Epoch.claim(storage)
    labeller, committer = UnitLabeller(job, BASE_GROUP), Committer(epoch, UnitStore(storage))
    check = Conservation(job.plan.entries, output)
    for unit in job.plan.units:
        record = committer.commit(unit, [labeller.label(unit, f"{epoch.staging}/{unit.name}.parquet")])
        check.add_unit(unit, record, pq.read_table(Path(output) / record.parts[0].path))
    scorers = {"toy": ScorerEntry(kind="toy", options={}, fingerprint="toy")}
    stored = StoredJob(storage, JobRecord(config=job.config.semantic(), scorers=scorers, sentences="1"), [], job.plan)
    manifest = seal(epoch, contents_of(stored, [1], {}), generation=1)
    check.finish(manifest.ledger)
    assert manifest.ledger.records == job.plan.records
    tables = [
        pq.read_table(Path(output) / file.path, columns=["source", "position"])
        for file in [*manifest.shards, *manifest.ledger.quarantine]
    ]
    return [(row["source"], row["position"]) for table in tables for row in table.to_pylist()]
