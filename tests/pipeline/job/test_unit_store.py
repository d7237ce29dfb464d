"""The plan puts every record into exactly one unit of bounded size, and fingerprints the inputs."""

import hashlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.inputs import Source
from pipeline.corpus.plan import Slice
from pipeline.corpus.readers import read_sources
from pipeline.corpus.records import Record
from pipeline.job.plan_files import read_plan, write_plan
from pipeline.storage.open import open_storage
from scorers.errors import UserError
from tests.pipeline.corpora import flat, make_config, read_all, write_lines, write_records


def test_fingerprints_match_the_files(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", {"text": "1"}, {"text": "2"})
    write_records(tmp_path / "b.jsonl.gz", {"text": "1"})
    write_lines(tmp_path / "c.jsonl", b"")
    (tmp_path / "d.txt").write_bytes(b"text")
    plan = make_plan(make_config(tmp_path))
    for source, entry in zip(plan.sources, plan.entries, strict=True):
        content = Path(source.uri).read_bytes()
        assert (entry.uri, entry.size, source.size) == (source.uri, len(content), len(content))
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
    assert [entry.records for entry in plan.entries] == [2, 1, 0, 1]
    assert plan.records == 4


def test_a_plan_round_trips(tmp_path: Path) -> None:
    write_records(tmp_path / "ä.jsonl", *({"text": str(index)} for index in range(50)))
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b")
    plan = make_plan(make_config(tmp_path, unit_size=64))
    assert plan.cut
    assert len(plan.units) > 5
    storage = open_storage(str(tmp_path / "out"))
    assert write_plan(storage, 1, ["."], plan)
    assert not write_plan(storage, 1, ["."], plan)
    stored = read_plan(storage)
    assert stored is not None
    again = stored.plan
    assert again == plan


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(
        st.tuples(st.sampled_from([".jsonl", ".jsonl.gz", ".txt"]), st.lists(st.integers(0, 60), max_size=8)),
        min_size=1,
        max_size=6,
    ),
    unit_size=st.integers(1, 300),
)
def test_units_are_bounded_and_cover_every_record_once(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, list[int]]], unit_size: int
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    sizes: dict[tuple[str, int], int] = {}
    for index, (suffix, lengths) in enumerate(files):
        path = folder / f"{index}{suffix}"
        if suffix == ".txt":
            path.write_bytes(b"x" * sum(lengths))
            sizes[str(path), 0] = max(1, sum(lengths))
            continue
        write_records(path, *({"text": "x" * length} for length in lengths))
        offset = 0
        for number, length in enumerate(lengths):
            size = len('{"text": ""}\n') + length
            sizes[str(path), offset if suffix == ".jsonl" else number] = size
            offset += size
    config = make_config(folder, unit_size=unit_size)
    plan, units = read_all(config)
    keys = [[(record.source, record.position) for record in unit] for unit in units]
    assert Counter(key for unit in keys for key in unit) == Counter(sizes.keys())
    assert flat(units) == list(read_sources(plan.sources, config))
    totals = [sum(sizes[key] for key in unit) for unit in keys]
    assert all(total <= unit_size or len(unit) == 1 for total, unit in zip(totals, keys, strict=True))
    # No two neighbouring units would fit into one, and within a source no unit could take one more record.
    for number, (unit, following) in enumerate(pairwise(keys)):
        assert totals[number] + totals[number + 1] > unit_size
        if unit[-1][0] == following[0][0] == unit[0][0]:
            assert totals[number] + sizes[following[0]] > unit_size
    assert make_plan(config, threads=1) == make_plan(config, threads=7) == plan


def test_small_files_share_a_unit(tmp_path: Path) -> None:
    for index in range(300):
        (tmp_path / f"{index:03}.py").write_text("x = 1\n" * (index % 3))
    plan, units = read_all(make_config(tmp_path, unit_size=1000))
    assert [unit.name for unit in plan.units] == ["00000000", "00000001"]
    assert len(flat(units)) == 300
    assert plan.units[0].slices[:2] == (Slice(0, 0, 1), Slice(1, 0, 1))


def test_progress_counts_the_bytes_of_every_source(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", *({"text": "x" * 1000} for _ in range(200)))
    write_records(tmp_path / "b.jsonl.gz", {"text": "1"})
    read: Counter[str] = Counter()

    def progress(source: Source, size: int) -> None:
        read[source.uri] += size

    plan = make_plan(make_config(tmp_path), progress)
    assert read == {source.uri: source.size for source in plan.sources}


def test_a_text_field_that_no_record_has_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", {"text": "SECRET", "id": 1}, {"body": "SECRET"})
    with pytest.raises(UserError, match="No record has the field 'content'; the first ones have: 'text', 'id', 'body'"):
        make_plan(make_config(tmp_path, text_field="content"))


def test_some_records_without_text_are_accepted(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", *({"body": "x"} for _ in range(300)))
    write_records(tmp_path / "b.jsonl", {"text": "x"})
    _, units = read_all(make_config(tmp_path))
    assert sum(isinstance(record, Record) for record in flat(units)) == 1


def test_inputs_without_any_record_have_no_units(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", b"\n\n")
    plan = make_plan(make_config(tmp_path))
    assert len(plan.units) == 0
    assert plan.records == 0
