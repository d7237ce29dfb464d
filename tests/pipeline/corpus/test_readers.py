"""Every record is read completely, once per key; malformed records become values with a reason."""

import bz2
import gzip
import json
import lzma
import math
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import LabelExecution
from pipeline.corpus.compression import window_of
from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.inputs import find_sources
from pipeline.corpus.readers import UnitReader, read_sources
from pipeline.corpus.records import Quarantined, Record
from pipeline.labelling.windows import check_windows
from scorers.errors import UserError
from tests.pipeline.corpora import flat, make_config, read_all, read_backwards, write_lines, write_records

FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_one(folder: Path, line: bytes, **options: Any) -> Record | Quarantined:
    """Read a line that follows a good one."""
    path = write_lines(folder / "one.jsonl", b'{"text": "good"}\n' + line + b"\n")
    _, units = read_all(make_config(path, **options))
    good, record = flat(units)
    assert isinstance(good, Record)
    assert record.position == 17
    return record


def reason(folder: Path, line: bytes, **options: Any) -> str:
    record = read_one(folder, line, **options)
    assert isinstance(record, Quarantined)
    assert record.text is None
    assert "SECRET" not in record.reason + record.detail
    return record.reason


def test_a_record(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", {"b": [1.5, None], "text": "Grüße.\n\0", "id": "x7", "a": {"é": "ü"}})
    _, units = read_all(make_config(path))
    assert flat(units) == [
        Record(str(path), 0, "x7", "Grüße.\n\0", '{"b":[1.5,null],"a":{"é":"ü"}}', "prose", ""),
    ]


@pytest.mark.parametrize(
    ("given_id", "doc_id"),
    [("x", "x"), (7, "7"), (1.5, "1.5"), (True, "true"), ([1, "a"], '[1,"a"]'), (None, None), ("", None)],
)
def test_ids(tmp_path: Path, given_id: Any, doc_id: str | None) -> None:
    record = read_one(tmp_path, json.dumps({"text": "t", "id": given_id}).encode())
    assert isinstance(record, Record)
    assert record.doc_id == (doc_id if doc_id is not None else f"{tmp_path}/one.jsonl#17")


def test_fields_can_be_named(tmp_path: Path) -> None:
    line = json.dumps({"text": "no", "body": "yes", "key": "k", "id": 3, "lang": "de", "n": 1}).encode()
    path = write_lines(tmp_path / "a.jsonl", line + b"\n")
    _, units = read_all(make_config(path, text_field="body", id_field="key", meta_fields=["lang", "id", "absent"]))
    (record,) = flat(units)
    assert isinstance(record, Record)
    assert (record.doc_id, record.text, record.meta) == ("k", "yes", '{"id":3,"lang":"de"}')


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"SECRET", "not-json"),
        (b'{"text": "SECRET"', "not-json"),
        (b'{"text": "SECRET"} {}', "not-json"),
        (b'{"text": "SEC\tRET"}', "not-json"),
        (b'{"text": "SECRET", "n": ' + b"9" * 5000 + b"}", "not-json"),
        (b'{"text": "SECRET", "n": ' + b"[" * 250 + b"]" * 250 + b"}", "not-json"),
        (b"[" * 100_000, "not-json"),
        (b'["SECRET"]', "not-an-object"),
        (b"null", "not-an-object"),
        (b'"SECRET"', "not-an-object"),
        (b'{"texts": "SECRET"}', "no-text"),
        (b'{"text": null}', "no-text"),
        (b'{"text": NaN}', "no-text"),
        (b'{"text": ["SECRET", 5]}', "text-not-a-string"),
        (b'{"text": ["SECRET", null]}', "text-not-a-string"),
        (b'{"text": [["SECRET"]]}', "text-not-a-string"),
        (b'{"text": {"SECRET": 1}}', "text-not-a-string"),
        (b'{"text": 5}', "text-not-a-string"),
        (b'{"text": "SECRET\xff"}', "invalid-utf8"),
        (b'{"text": "SECRET\xed\xa0\x80"}', "invalid-utf8"),
        (b'{"text": "SECRET\\ud800"}', "lone-surrogate"),
        (b'{"text": "\\udc00SECRET"}', "lone-surrogate"),
        (b'{"text": "SECRET", "id": "\\ud800"}', "lone-surrogate"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_malformed_records(tmp_path: Path, line: bytes, expected: str) -> None:
    assert reason(tmp_path, line) == expected
    kept = read_one(tmp_path, line, quarantine_text=True)
    assert isinstance(kept, Quarantined)
    assert kept.text is not None
    assert kept.text.encode() == line.strip() or "\\x" in kept.text


def test_a_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    record = read_one(tmp_path, b'{"text": "\\ud83d\\ude00"}')
    assert isinstance(record, Record)
    assert record.text == "\N{GRINNING FACE}"


def test_meta_is_always_json_that_utf8_can_hold(tmp_path: Path) -> None:
    line = b'{"text": "t", "a": NaN, "b": [1e999, -Infinity, 1.5], "c": "\\ud800", "d": "\xc3\xbc", "e": 1, "e": 2}'
    record = read_one(tmp_path, line)
    assert isinstance(record, Record)
    assert record.meta.encode() == b'{"a":null,"b":[null,null,1.5],"c":"\\ud800","d":"\\u00fc","e":2}'


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_lines(tmp_path: Path, suffix: str) -> None:
    content = b'\xef\xbb\xbf{"text": "1"}\r\n\n \t\r\n{"text": ""}\n{"text": "3"}\r{"text": "x"}\n\x0b\n{"text": "4"}'
    path = write_lines(tmp_path / f"a{suffix}", content)
    _, units = read_all(make_config(path, unit_size=1))
    records = flat(units)
    assert [each.text if isinstance(each, Record) else each.reason for each in records] == [
        *("1", "", "not-json", "not-json", "4")
    ]
    starts = [
        0,
        content.index(b'{"text": ""'),
        content.index(b'{"text": "3"'),
        content.index(b"\x0b"),
        len(content) - 13,
    ]
    assert [each.position for each in records] == (starts if suffix == ".jsonl" else [0, 1, 2, 3, 4])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".txt", ".py"])
def test_a_record_that_is_too_large_is_never_kept_in_memory(tmp_path: Path, suffix: str) -> None:
    if suffix in {".txt", ".py"}:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"x" * 1001)
        expected = [(0, "too-large")]
    else:
        long = json.dumps({"text": "x" * 300_000}).encode()
        path = write_lines(tmp_path / f"a{suffix}", b'{"text": "1"}\n' + long + b'\n{"text": "2"}\n' + long)
        first, last = 14, 14 + len(long) + 1
        positions = [0, first, last, last + 14] if suffix == ".jsonl" else [0, 1, 2, 3]
        expected = list(zip(positions, ["1", "too-large", "2", "too-large"], strict=True))
    _, units = read_all(make_config(path, max_record_size=1000))
    found = [(each.position, each.text if isinstance(each, Record) else each.reason) for each in flat(units)]
    assert found == expected


def test_a_file_is_a_document(tmp_path: Path) -> None:
    contents = {"a.py": "x = 1\r\n\fy = 'ü'\n", "b.txt": "", "c.txt": "\N{ZERO WIDTH NO-BREAK SPACE}a\0b"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
    (tmp_path / "d.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xfc'\n")
    plan, units = read_all(make_config(tmp_path))
    assert len(units) == 1
    assert flat(units) == [
        Record(f"{tmp_path}/a.py", 0, f"{tmp_path}/a.py#0", contents["a.py"], "{}", "python", "a.py"),
        Record(f"{tmp_path}/b.txt", 0, f"{tmp_path}/b.txt#0", "", "{}", "prose", "b.txt"),
        Record(f"{tmp_path}/c.txt", 0, f"{tmp_path}/c.txt#0", contents["c.txt"], "{}", "prose", "c.txt"),
        Quarantined(f"{tmp_path}/d.py", 0, "invalid-utf8", "at byte 31 of the file"),
    ]
    assert plan.records == 4


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
LINES = st.one_of(
    st.builds(
        lambda text, meta, ascii_: json.dumps({**meta, "text": text}, ensure_ascii=ascii_).encode(),
        st.text(),
        st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=2),
        st.booleans(),
    ),
    st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")),
    st.sampled_from([b"", b" ", b"\r", b"{}", b"[]", b'{"text": 1}', b'{"text": "\\ud800"}', b'{"text": ""}']),
)


def reference(content: bytes, *, by_bytes: bool) -> list[tuple[int, str | None]]:
    """Read as simply as possible: (position, text), with None for a malformed record."""
    found: list[tuple[int, str | None]] = []
    offset = 0
    for line in content.split(b"\n"):
        start, offset = offset, offset + len(line) + 1
        if start == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip(b" \t\r"):
            continue
        try:
            text = json.loads(line.decode())["text"]
            text.encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            text = None
        found.append((start if by_bytes else len(found), text))
    return found


@FEW
@given(
    lines=st.lists(LINES, max_size=12),
    ending=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    unit_size=st.integers(1, 200),
    suffix=st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst"]),
    members=st.integers(1, 3),
)
def test_units_give_the_same_records_as_a_simple_reader(
    tmp_path: Path, lines: list[bytes], ending: bytes, last: bool, unit_size: int, suffix: str, members: int
) -> None:
    content = ending.join(lines) + (ending if last else b"")
    path = write_lines(tmp_path / f"a{suffix}", b'{"text": "first"}\n' + content, members)
    config = make_config(path, unit_size=unit_size)
    plan, units = read_all(config)
    records = flat(units)
    expected = reference(b'{"text": "first"}\n' + content, by_bytes=suffix == ".jsonl")
    assert [(each.position, each.text if isinstance(each, Record) else None) for each in records] == expected
    assert plan.records == len(records)
    assert all(units)
    assert list(read_sources(plan.sources, config)) == records
    assert read_backwards(plan, config) == records


@FEW
@given(
    texts=st.lists(st.text(max_size=50), min_size=1, max_size=30), cut=st.floats(0, 1), unit_size=st.integers(1, 500)
)
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_stream_gives_all_that_came_before_the_cut(
    tmp_path: Path, suffix: str, texts: list[str], cut: float, unit_size: int
) -> None:
    content = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    whole = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    kept = whole[: min(len(whole) - 1, int(cut * len(whole)))]
    if suffix == ".gz":
        decompressor = zlib.decompressobj(31)
        available = decompressor.decompress(kept)
    else:
        available = zstandard.ZstdDecompressor().decompressobj().decompress(kept)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(kept)
    config = make_config(path, unit_size=unit_size)
    plan, units = read_all(config)
    complete = available.count(b"\n")
    assert [each.text for each in flat(units)] == texts[:complete]
    assert [(each.source, each.position, each.reason) for each in plan.cut] == [
        (str(path), complete, "truncated-source")
    ]
    assert plan.entries[0].size == len(kept)
    assert list(read_sources(plan.sources, config)) == [*flat(units), *plan.cut]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_long_truncated_stream_loses_nothing_before_the_cut(tmp_path: Path, suffix: str) -> None:
    lines = [json.dumps({"text": f"{index:x} {math.sin(index)!r}"}).encode() + b"\n" for index in range(60_000)]
    path = write_lines(tmp_path / f"a.jsonl{suffix}", b"".join(lines))
    kept = path.read_bytes()[:-5000]
    path.write_bytes(kept)
    if suffix == ".gz":
        available = zlib.decompressobj(31).decompress(kept)
    else:
        available = zstandard.ZstdDecompressor().decompressobj().decompress(kept)
    _, units = read_all(make_config(path))
    assert len(flat(units)) == available.count(b"\n") > 40_000


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_garbage_after_a_stream_is_reported_with_its_size(tmp_path: Path, suffix: str) -> None:
    good = write_lines(tmp_path / f"a.jsonl{suffix}", b'{"text": "1"}\n{"text": "2"}\n')
    garbage = b"this is no member of a stream"
    good.write_bytes(good.read_bytes() + garbage)
    (tmp_path / f"c.jsonl{suffix}").write_bytes(b"")
    write_lines(tmp_path / f"d.jsonl{suffix}", b"")
    plan, units = read_all(make_config(tmp_path))
    assert [each.text for each in flat(units)] == ["1", "2"]
    assert [(Path(each.source).name[0], each.position, each.reason) for each in plan.cut] == [
        ("a", 2, "unreadable-source"),
        ("c", 0, "truncated-source"),
    ]
    assert [(entry.records, entry.unread) for entry in plan.entries] == [(2, len(garbage)), (0, 1), (0, 0)]


def test_padding_that_gzip_and_zstd_skip_is_not_a_cut(tmp_path: Path) -> None:
    one, two = b'{"text": "1"}\n', b'{"text": "2"}\n'
    skippable = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
    contents = {
        "a.jsonl.gz": gzip.compress(one) + gzip.compress(two) + bytes(1000),
        "b.jsonl.gz": gzip.compress(one) + bytes(7) + gzip.compress(two),
        "c.jsonl.zst": skippable + zstandard.compress(one) + skippable + zstandard.compress(two) + skippable,
        "d.jsonl.bz2": bz2.compress(one) + bz2.compress(two),
        "e.jsonl.xz": lzma.compress(one) + lzma.compress(two) + bytes(4),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    plan, units = read_all(make_config(tmp_path))
    assert plan.cut == []
    assert [each.text for each in flat(units)] == ["1", "2"] * 5


@pytest.mark.parametrize("log", [27, 29, 31])
def test_long_windows_are_decoded(tmp_path: Path, log: int) -> None:
    options = zstandard.ZstdCompressionParameters.from_level(1, window_log=log)
    packed = zstandard.ZstdCompressor(compression_params=options).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packed.compress(b'{"text": "1"}\n' * 3) + packed.flush())
    assert window_of(path.read_bytes()) == 1 << log
    plan, units = read_all(make_config(path))
    assert ([each.text for each in flat(units)], plan.cut) == (["1"] * 3, [])
    limited = make_config(path, execution={"memory_limit": "100MiB"})
    with pytest.raises(UserError, match=r"window of .* more than execution\.memory_limit"):
        make_plan(limited)


def test_the_windows_of_all_workers_must_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(log: int, **execution: Any) -> None:
        (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + b"\x01\x00\x00")
        check_windows(find_sources([str(tmp_path)], "auto"), LabelExecution.model_validate(execution))

    monkeypatch.setattr("pipeline.labelling.windows.machine_memory", lambda: 16 << 30)
    with pytest.raises(UserError, match=r"window of 2,048 MiB .* each of 5 workers: .*Use --workers 4, or recompress"):
        check(31, workers=5)
    with pytest.raises(UserError, match="each of 6 workers"):
        check(31, pools={"cpu": {"max": 2}, "toxicity": {"device": "cuda", "max": 4}})
    check(31, workers=4)
    check(27, workers=64)
    check(31, workers=64, address="auto")  # the machines of a cluster have their own memory


def test_a_window_that_is_too_long_is_refused_with_the_remedy(tmp_path: Path) -> None:
    head = b"\x28\xb5\x2f\xfd\x00" + bytes([(32 - 10) << 3]) + b"\x01\x00\x00"
    (tmp_path / "a.jsonl.zst").write_bytes(head)
    with pytest.raises(UserError, match=r"needs a window of 4 GiB.*zstd --long=27"):
        make_plan(make_config(tmp_path))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".txt"])
def test_an_input_that_has_changed_since_the_plan_is_refused(tmp_path: Path, suffix: str) -> None:
    lines = b"".join(json.dumps({"text": str(index)}).encode() + b"\n" for index in range(1000))
    path = write_lines(tmp_path / f"a{suffix}", lines)
    config = make_config(path, unit_size=1000)
    plan = make_plan(config)
    write_lines(path, lines[: len(lines) // 2])
    reader = UnitReader(plan, config)
    with pytest.raises(UserError, match="has changed since"):
        list(reader.read(plan.units[-1]))
    with pytest.raises(UserError, match="has changed since"):
        list(reader.read(plan.units[-1]))
    path.unlink()
    reader.close()
    with pytest.raises(UserError, match="No such file"):
        list(reader.read(plan.units[-1]))


def test_a_disk_fault_is_not_mistaken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_records(tmp_path / "a.jsonl.gz", *({"text": "x" * 100} for _ in range(10)))
    config = make_config(path)
    (source,) = find_sources([str(path)])

    class Failing:
        def __init__(self, *_: object) -> None: ...

        def read(self, *_: object) -> bytes:
            raise ConnectionError("the network went away")

        def size(self) -> int:
            return path.stat().st_size

        def close(self) -> None: ...

    plan = make_plan(config)
    monkeypatch.setattr("pipeline.corpus.streams.open_source", lambda _: Failing())
    with pytest.raises(ConnectionError):
        list(read_sources([source], config))
    with pytest.raises(ConnectionError):
        list(UnitReader(plan, config).read(plan.units[0]))
    with pytest.raises(UserError, match=r"Cannot read the input .*network went away"):
        make_plan(config)


def test_a_stream_read_by_successive_units_is_decompressed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_records(tmp_path / "a.jsonl.gz", *({"text": str(index)} for index in range(500)))
    config = make_config(path, unit_size=100)
    plan = make_plan(config)
    opened = []
    from pipeline.corpus import streams

    real = streams.open_source
    monkeypatch.setattr(streams, "open_source", lambda source: opened.append(source) or real(source))
    reader = UnitReader(plan, config)
    for unit in plan.units[::2]:
        list(reader.read(unit))
    assert len(opened) == 1
    assert len(plan.units) > 50


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_memory_does_not_grow_with_the_size_of_a_line_or_file(tmp_path: Path, suffix: str) -> None:
    path = write_lines(tmp_path / f"a{suffix}", b'{"text": "1"}\n' * 5_000 + b'{"text": "' + b"x" * 20_000_000)
    config = make_config(path, max_record_size=100_000)
    tracemalloc.start()
    try:
        plan = make_plan(config)
        reader = UnitReader(plan, config)
        counts = [sum(1 for _ in reader.read(unit)) for unit in plan.units]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(counts) == 5_001
    assert peak < 2_000_000
