"""Arrow IPC streams (as written by `save_to_disk`) and files: every row once, and no silent truncation."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.readers import UnitReader, read_sources
from pipeline.corpus.records import Record
from scorers.errors import UserError
from tests.pipeline.corpora import flat, make_config, read_all, read_backwards

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, texts: list[Any], *, rows: int = 1000, as_file: bool = False) -> Path:
    table = pa.table({"text": pa.array(texts, pa.string()), "n": range(len(texts))})
    opened = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with opened(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@FEW
@given(
    texts=st.lists(st.none() | st.text(max_size=30), max_size=40),
    rows=st.integers(1, 20),
    unit_size=st.integers(1, 300),
    as_file=st.booleans(),
)
def test_units_read_every_row_once(
    tmp_path: Path, texts: list[str | None], rows: int, unit_size: int, as_file: bool
) -> None:
    path = write(tmp_path / "a.arrow", texts, rows=rows, as_file=as_file)
    config = make_config(path, unit_size=unit_size)
    plan, units = read_all(config)
    records = flat(units)
    assert plan.cut == []
    assert [(each.position, each.text) for each in records] == list(enumerate(texts))
    assert [each.meta for each in records if isinstance(each, Record)] == [
        f'{{"n":{row}}}' for row, text in enumerate(texts) if text is not None
    ]
    assert list(read_sources(plan.sources, config)) == records
    assert read_backwards(plan, config) == records


def test_feather_files_are_arrow_files(tmp_path: Path) -> None:
    pa.feather.write_feather(pa.table({"text": ["x", "y"]}), tmp_path / "a.arrow", compression="zstd")
    _, units = read_all(make_config(tmp_path))
    assert [each.text for each in flat(units)] == ["x", "y"]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view()])
def test_texts_of_any_layout_are_read_from_dictionaries_and_run_ends(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["x", "ü", "x", None]
    codes = pa.array(texts).dictionary_encode()
    packed = pa.DictionaryArray.from_arrays(codes.indices, codes.dictionary.cast(kind))
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3, 4], pa.int32()), pa.array(texts).cast(kind))
    for name, column in (("a", packed), ("b", runs)):
        table = pa.table({"text": column})
        with pa.ipc.new_stream(tmp_path / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
    config = make_config(tmp_path, unit_size=1)
    plan, units = read_all(config)
    assert [each.text for each in flat(units)] == texts * 2
    assert read_backwards(plan, config) == flat(units)


@FEW
@given(cut=st.integers(0, 10**6), as_file=st.booleans())
def test_a_truncated_file_gives_all_batches_before_the_cut(tmp_path: Path, cut: int, as_file: bool) -> None:
    texts = [f"{n:0100}" for n in range(50)]
    path = write(tmp_path / "a.arrow", texts, rows=10, as_file=as_file)
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    config = make_config(path)
    plan, units = read_all(config)
    found = [each.text for each in flat(units)]
    assert found == texts[: len(found)]
    assert [(each.position, each.reason in {"truncated-source", "unreadable-source"}) for each in plan.cut] == [
        (len(found), True)
    ]
    assert list(read_sources(plan.sources, config)) == [*flat(units), *plan.cut]
    if not as_file:
        assert len(found) % 10 == 0
        assert len(found) >= 10 * ((cut % len(whole)) // (len(whole) // 5) - 1)


def test_texts_that_are_not_utf8_are_quarantined_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", ["good", "SECRETxx", "last"])
    path.write_bytes(path.read_bytes().replace(b"SECRETxx", b"SECRET\xffx"))
    _, units = read_all(make_config(path))
    assert [each.text if isinstance(each, Record) else each.reason for each in flat(units)] == [
        *("good", "invalid-utf8", "last")
    ]


def test_an_inconsistent_batch_does_not_affect_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", [f"{n:010}" for n in range(30)], rows=10)
    content = bytearray(path.read_bytes())
    offsets = b"".join((10 * n).to_bytes(4, "little") for n in range(11))
    at = content.index(offsets, content.index(offsets) + 1) + 12
    content[at : at + 4] = (10**6).to_bytes(4, "little")
    path.write_bytes(content)
    _, units = read_all(make_config(path, unit_size=1))
    found = flat(units)
    assert [each.position for each in found] == list(range(30))
    assert [getattr(each, "reason", None) for each in found] == [None] * 10 + ["unreadable-source"] * 10 + [None] * 10


def test_an_arrow_file_without_its_schema_is_cut_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b"")
    (tmp_path / "b.arrow").write_bytes(b"ARROW1 and no arrow file at all")
    plan, units = read_all(make_config(tmp_path))
    assert units == []
    assert [each.position for each in plan.cut] == [0, 0]


def test_columns_and_changes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", ["x"] * 100)
    with pytest.raises(UserError, match="has no column 'body'; it has: text, n"):
        make_plan(make_config(path, text_field="body"))
    config = make_config(path)
    plan = make_plan(config)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="has changed since"):
        list(UnitReader(plan, config).read(plan.units[0]))


@FEW
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    as_file=st.booleans(),
)
def test_no_damage_makes_reading_fail(tmp_path: Path, changes: list[tuple[int, int]], as_file: bool) -> None:
    path = tmp_path / "a.arrow"
    table = pa.table({"text": [["a", "b" * 20], ["ü"], None] * 10, "n": ["x", "y", None] * 10})
    with (pa.ipc.new_file if as_file else pa.ipc.new_stream)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    content = bytearray(path.read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    path.write_bytes(content)
    try:
        plan, units = read_all(make_config(path))
    except UserError as error:  # the changed bytes may be in the name of the column, or at the start of the file
        assert "--text-field" in str(error) or "looks like binary data. Repair it" in str(error)  # noqa: PT017
        return
    assert plan.records == len(flat(units))
