"""Parquet: every row once for any cut, values of all types in meta, and damage that stays contained."""

import datetime
import decimal
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.arrow_json import json_values
from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.fields import settle_sentences
from pipeline.corpus.readers import UnitReader, read_sources
from pipeline.corpus.records import Quarantined, Record
from pipeline.corpus.streams import SourceFile
from scorers.errors import UserError
from tests.pipeline.corpora import flat, make_config, read_all, read_backwards


def write(path: Path, table: dict[str, Any] | pa.Table, **options: Any) -> Path:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def test_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        {"id": ["x", None], "text": ["Grüße\0", ""], "n": [1, None], "when": [datetime.datetime(2024, 5, 1, 12), None]},
    )
    _, units = read_all(make_config(path))
    assert flat(units) == [
        Record(str(path), 0, "x", "Grüße\0", '{"n":1,"when":"2024-05-01 12:00:00.000000"}', "prose", ""),
        Record(str(path), 1, f"{path}#1", "", '{"n":null,"when":null}', "prose", ""),
    ]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.none() | st.text(max_size=40), min_size=1, max_size=40),
    row_group_size=st.integers(1, 40),
    unit_size=st.integers(1, 300),
    text_type=st.sampled_from([pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]),
)
def test_units_read_every_row_once(
    tmp_path: Path, texts: list[str | None], row_group_size: int, unit_size: int, text_type: pa.DataType
) -> None:
    values = [None if text is None else text.encode() for text in texts] if text_type == pa.binary() else texts
    table = pa.table({"text": pa.array(values, text_type), "n": pa.array(range(len(texts)))})
    path = write(tmp_path / "a.parquet", table, row_group_size=row_group_size)
    config = make_config(path, unit_size=unit_size)
    plan, units = read_all(config)
    records = flat(units)
    assert [each.position for each in records] == list(range(len(texts)))
    assert [each.text if isinstance(each, Record) else None for each in records] == texts
    assert all(each.meta == json.dumps({"n": each.position}, separators=(",", ":")) for each in records if each.text)
    assert {each.reason for each in records if isinstance(each, Quarantined)} <= {"no-text"}
    assert list(read_sources(plan.sources, config)) == records
    assert read_backwards(plan, config) == records


def test_a_large_row_group_is_cut_by_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": [f"{index:0100}" for index in range(10_000)]})
    config = make_config(path, unit_size=50_000)
    _, units = read_all(config)
    assert 18 <= len(units) <= 24
    assert [each.text for each in flat(units)] == [f"{index:0100}" for index in range(10_000)]


def test_invalid_and_large_texts_are_quarantined_one_by_one(tmp_path: Path) -> None:
    contents = [b"good", b"bad\xff", b"\xed\xa0\x80", None, b"x" * 101, b"last"]
    offsets = [0]
    for content in contents:
        offsets.append(offsets[-1] + len(content or b""))
    valid = pa.py_buffer(bytes([sum((content is not None) << index for index, content in enumerate(contents))]))
    data = pa.py_buffer(b"".join(content or b"" for content in contents))
    array = pa.Array.from_buffers(
        pa.string(), len(contents), [valid, pa.py_buffer(struct.pack(f"{len(offsets)}i", *offsets)), data]
    )
    path = write(tmp_path / "a.parquet", pa.table({"text": array}))
    _, units = read_all(make_config(path, max_record_size=100))
    assert [each.text if isinstance(each, Record) else each.reason for each in flat(units)] == [
        *("good", "invalid-utf8", "invalid-utf8", "no-text", "too-large", "last")
    ]
    _, units = read_all(make_config(path, max_record_size=100, quarantine_text=True))
    assert [each.text for each in flat(units)][1:5] == ["bad\\xff", "\\xed\\xa0\\x80", None, None]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"body": ["x"], "id": ["1"]}, {}, "has no column 'text'; it has: body, id.*--text-field"),
        ({"text": [1, 2]}, {}, "The column 'text' of .*a.parquet holds int64, not strings"),
        ({"text": [[1]]}, {}, "holds list<element: int64>, not strings"),
        ({"text": ["x"]}, {"meta_fields": ["lang"]}, "has no column 'lang', which meta_fields names"),
        (pa.table([["x"], ["y"]], names=["text", "text"]), {}, "has 2 columns named 'text'"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, table: Any, options: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.parquet", table)
    with pytest.raises(UserError, match=message):
        make_plan(make_config(tmp_path, **options))


def test_files_that_are_not_parquet_are_cut_at_their_start(tmp_path: Path) -> None:
    good = write(tmp_path / "good.parquet", {"text": ["x", "y"]})
    (tmp_path / "a.parquet").write_bytes(good.read_bytes()[:-20])
    (tmp_path / "b.parquet").write_bytes(b"")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 this is not the footer of anything PAR1")
    plan, units = read_all(make_config(tmp_path))
    assert [each.text for each in flat(units)] == ["x", "y"]
    assert [(Path(each.source).name, each.position, each.reason) for each in plan.cut] == [
        (f"{name}.parquet", 0, "unreadable-source") for name in "abc"
    ]


def test_a_damaged_page_affects_only_its_row_group(tmp_path: Path) -> None:
    texts = [f"{index:05} {'x' * 50}" for index in range(3000)]
    path = write(
        tmp_path / "a.parquet",
        {"text": texts},
        row_group_size=1000,
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
    )
    content = bytearray(path.read_bytes())
    content[content.index(b"01500 ")] ^= 1
    path.write_bytes(content)
    for unit_size in (1_000, 7_000, 10_000_000):
        config = make_config(path, unit_size=unit_size)
        plan, units = read_all(config)
        records = flat(units)
        assert plan.records == len(records) == 3000
        lost = [each.position for each in records if isinstance(each, Quarantined)]
        assert {each.reason for each in records if isinstance(each, Quarantined)} == {"unreadable-source"}
        assert lost == list(range(lost[0], 2000))
        assert 1000 <= lost[0] <= 1500
        assert [each.text for each in records if isinstance(each, Record)] == texts[: lost[0]] + texts[2000:]
        assert list(read_sources(plan.sources, config)) == records
        assert read_backwards(plan, config) == records


def test_a_parquet_file_that_has_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["x"] * 100})
    config = make_config(path)
    plan = make_plan(config)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="has changed since"):
        list(UnitReader(plan, config).read(plan.units[0]))


UTC2 = datetime.timezone(datetime.timedelta(hours=2))
_VIEWS = pa.array([{"v": "a"}, {"v": "b"}], pa.struct([("v", pa.string_view())]))
VALUES = [
    (pa.array([1, None, 3], pa.uint64()), [1, None, 3]),
    (pa.array([True, None]), [True, None]),
    (pa.array([1.5, None], pa.float32()), [1.5, None]),
    (pa.array(["a", None]).dictionary_encode(), ["a", None]),
    (pa.DictionaryArray.from_arrays(pa.array([1, None]), _VIEWS), [{"v": "b"}, None]),
    (pa.RunEndEncodedArray.from_arrays(pa.array([1, 3], pa.int32()), _VIEWS), [{"v": "a"}, {"v": "b"}, {"v": "b"}]),
    (pa.array([["a", "b"], None], pa.list_view(pa.string_view())), [["a", "b"], None]),
    (
        pa.ListViewArray.from_arrays(
            pa.array([1, 0], pa.int32()),
            pa.array([1, 2], pa.int32()),
            pa.DictionaryArray.from_arrays(pa.array([0, 1]), _VIEWS),
        ),
        [[{"v": "b"}], [{"v": "a"}, {"v": "b"}]],
    ),
    (pa.array(["ü", None], pa.string_view()), ["ü", None]),
    (pa.array([b"\xff", None]), ["/w==", None]),
    (pa.array([decimal.Decimal("1.10"), None]), ["1.10", None]),
    (pa.array([1, None], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001", None]),
    (pa.array([datetime.datetime(2024, 5, 1, 12, tzinfo=UTC2)]), ["2024-05-01 10:00:00.000000Z"]),
    (pa.array([datetime.date(2024, 5, 1)]), ["2024-05-01"]),
    (pa.array([7], pa.duration("s")), ["7"]),
    (pa.array([[1, None], None, []]), [[1, None], None, []]),
    (pa.array([["a"], None], pa.large_list(pa.string())), [["a"], None]),
    (pa.array([[1, 2], None, [5, 6]], pa.list_(pa.int8(), 2)), [[1, 2], None, [5, 6]]),
    (
        pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}]),
        [{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}],
    ),
    (pa.array([[("k", 1), ("l", None)], None, []], pa.map_(pa.string(), pa.int64())), [{"k": 1, "l": None}, None, {}]),
    (pa.array([[(1, "x")]], pa.map_(pa.int64(), pa.string())), [{"1": "x"}]),
    (pa.array([None, None]), [None, None]),
    (pa.array([{}, None], pa.struct([])), [{}, None]),
]


@pytest.mark.parametrize(("array", "expected"), VALUES, ids=lambda value: str(getattr(value, "type", "")))
def test_values_as_json(array: pa.Array, expected: list[Any]) -> None:
    assert json_values(array) == expected
    assert json_values(array.slice(1)) == expected[1:]
    nested = pa.StructArray.from_arrays([array], ["f"])
    assert json_values(nested.slice(1)) == [{"f": value} for value in expected[1:]]
    lists = pa.ListArray.from_arrays(pa.array([0, 1, len(array)], pa.int32()), array)
    assert json_values(lists.slice(1)) == [expected[1:]]
    json.dumps(expected)


def test_a_huge_row_group_is_never_loaded_completely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    texts = [random.bytes(1250).hex() for _ in range(16_000)]
    path = write(tmp_path / "a.parquet", {"text": texts}, use_dictionary=False, compression="none")
    assert pq.read_metadata(path).num_row_groups == 1
    largest = 0
    real = SourceFile.read

    def read(self: SourceFile, size: int = -1, /) -> bytes:
        nonlocal largest
        content = real(self, size)
        largest = max(largest, len(content))
        return content

    config = make_config(path)
    plan = make_plan(config)
    monkeypatch.setattr(SourceFile, "read", read)
    tracemalloc.start()
    try:
        reader = UnitReader(plan, config)
        count = sum(1 for unit in plan.units for _ in reader.read(unit))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 16_000
    assert largest <= 2_000_000
    assert peak < 16_000_000


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_partitions_without_rows_or_texts_are_accepted(tmp_path: Path, suffix: str) -> None:
    tables = {
        "a": pa.table({"text": pa.nulls(0), "lang": pa.nulls(0)}),
        "b": pa.table({"lang": pa.nulls(0)}),
        "c": pa.table({}),
        "d": pa.table({"text": pa.nulls(2), "lang": ["en", "de"]}),
        "e": pa.table({"text": pa.array([None], pa.list_(pa.null())), "lang": ["en"]}),
        "f": pa.table({"text": ["One."], "lang": ["en"]}),
    }
    for name, table in tables.items():
        write_rows(tmp_path / f"{name}{suffix}", table)
    config = make_config(tmp_path, meta_fields=["lang"])
    plan, units = read_all(config)
    found = [(Path(each.source).name[0], each.text or each.reason) for each in flat(units)]  # type: ignore[union-attr]
    assert found == [("d", "no-text"), ("d", "no-text"), ("e", "no-text"), ("f", "One.")]
    assert plan.cut == []
    assert settle_sentences(plan.sources[:4], config).sentences == "split"
    assert settle_sentences(plan.sources, config).sentences == "given"
    write_rows(tmp_path / f"g{suffix}", pa.table({"lang": ["en"]}))
    with pytest.raises(UserError, match=rf"g{suffix} has no column 'text'"):
        make_plan(config)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    "kind",
    [
        *(pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.json_()),
        *(pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.string()), pa.list_view(pa.string_view())),
    ],
    ids=str,
)
def test_texts_of_every_type(tmp_path: Path, suffix: str, kind: pa.DataType) -> None:
    texts = ["Grüße.", None, ""]
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        column = pa.array([None if each is None else [each] for each in texts], kind)
    else:
        column = pa.array(texts, pa.string()).cast(kind)
    path = write_rows(tmp_path / f"a{suffix}", pa.table({"text": column}))
    _, units = read_all(make_config(path))
    assert [each.text if isinstance(each, Record) else each.reason for each in flat(units)] == ["Grüße.", "no-text", ""]


def write_rows(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        return write(path, table)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path
