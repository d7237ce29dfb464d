"""WET files: every text once despite damage, and no silent truncation."""

import gzip
import io
import json
import random
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from fastwarc.warc import ArchiveIterator
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.readers import UnitReader, read_sources
from pipeline.corpus.records import Quarantined, Record
from scorers.errors import UserError
from tests.pipeline.corpora import flat, make_config, read_all, read_backwards
from tests.pipeline.here import rows_of, run
from tests.pipeline.warc_files import members, record, wet

FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = ["Guten Morgen.\n", "", "Zweitens. Drittens!", "x" * 500, "Grüße\0\r\n\r\nWARC/1.0\r\nfalsch", "last"]


def read(path: Path, **options: Any) -> list[Any]:
    """(position, text or reason) of all records, then of the cuts."""
    plan, units = read_all(make_config(path, **options))
    records = flat(units)
    assert plan.records == len(records)
    assert list(read_sources(plan.sources, make_config(path, **options))) == [*records, *plan.cut]
    assert read_backwards(plan, make_config(path, **options)) == records
    return [(each.position, each.text if isinstance(each, Record) else each.reason) for each in [*records, *plan.cut]]


def write(path: Path, records: list[bytes]) -> Path:
    path.write_bytes(members(records) if path.suffix == ".gz" else b"".join(records))
    return path


@pytest.mark.parametrize("name", ["a.warc.wet.gz", "a.wet.gz", "a.warc.gz", "a.warc", "a.WET"])
def test_every_record_is_a_text(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, wet(TEXTS))
    assert read(path) == list(enumerate(TEXTS))
    assert read(path, unit_size=600) == list(enumerate(TEXTS))
    _, units = read_all(make_config(path))
    first = flat(units)[0]
    assert isinstance(first, Record)
    assert first.doc_id == "<urn:uuid:00000000>"
    meta = json.loads(first.meta)
    assert meta.pop("WARC-Block-Digest").startswith("sha1:")
    assert meta == {
        "WARC-Date": "2024-05-01T00:00:00Z",
        "WARC-Target-URI": "https://example.org/ü/0",
        "Content-Type": "text/plain",
    }
    _, units = read_all(make_config(path, meta_fields=["WARC-Target-URI", "absent"]))
    assert json.loads(flat(units)[1].meta) == {"WARC-Target-URI": "https://example.org/ü/1"}  # type: ignore[union-attr]


def test_a_wet_file_is_labelled_and_verified(tmp_path: Path) -> None:
    write(tmp_path / "a.warc.wet.gz", wet(TEXTS))
    run("label", tmp_path / "a.warc.wet.gz", "--output", tmp_path / "out", "--scorer", "pep8", "--unit-size", "500")
    assert [row["text"] for row in rows_of(tmp_path / "out")] == TEXTS
    assert run("verify", tmp_path / "out", "--inputs")["ok"]


def test_web_pages_are_refused_with_an_alternative(tmp_path: Path) -> None:
    page = record("response", 1, b"HTTP/1.1 200 OK\r\n\r\n<html>", Content_Type="application/http; msgtype=response")
    path = write(tmp_path / "a.warc.gz", [wet([])[0], record("request", 0, b"GET /"), page])
    with pytest.raises(UserError, match=r"a\.warc\.gz holds web pages as they were fetched.*WET files"):
        make_plan(make_config(path))


def test_records_without_text_are_quarantined(tmp_path: Path) -> None:
    records = [
        record("conversion", 0, b"%PDF", Content_Type="application/pdf"),
        record("resource", 1, b"text"),
        record("conversion", 2, b"\xff"),
        record("metadata", 3, b"about another"),
        record("conversion", 4, b"good", Content_Type="text/plain; charset=utf-8"),
        record("conversion", 5, b"good", Content_Type="", WARC_Record_ID=""),
    ]
    path = write(tmp_path / "a.warc", records)
    assert read(path) == [(0, "not-text"), (1, "not-text"), (2, "invalid-utf8"), (3, "good"), (4, "good")]
    _, units = read_all(make_config(path))
    assert flat(units)[4].doc_id == f"{path}#4"  # type: ignore[union-attr]


def test_a_record_that_is_too_large_is_never_kept_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.warc.wet.gz", wet(["small", "x" * 20_000_000, "small too"], digest=False))
    config = make_config(path, max_record_size=100_000)
    tracemalloc.start()
    try:
        plan = make_plan(config)
        reader = UnitReader(plan, config)
        found = [each for unit in plan.units for each in reader.read(unit)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [each.text if isinstance(each, Record) else each.reason for each in found] == [
        *("small", "too-large", "small too")
    ]
    assert peak < 4_000_000


def spoil(whole: bytes, old: bytes, new: bytes) -> bytes:
    assert whole.count(old) >= 1
    return whole.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"WARC/1.0", b"WORC/1.0", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
        (b"Content-Length: 4", b"Content-Length: x", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
        (b"Content-Length: 4\r\n", b"", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
        (b"Content-Length: 4", b"Content-Length: 3", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
        (b"Content-Length: 4", b"Content-Length: 5", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
        (b"Content-Length: 4", b"Content-Length: 9999", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
        (
            b"Content-Length: 4",
            b"Content-Length: 4\r\nContent-Length: 4",
            [(0, "broken-record"), (1, "zwei"), (2, "drei")],
        ),
        (b"\r\n\r\neins", b"\r\neins", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
        (
            b"\r\n\r\nWARC",
            b"\r\n\r\ngarbage\r\nmore\r\nWARC",
            [(0, "eins"), (1, "broken-record"), (2, "zwei"), (3, "drei")],
        ),
        (b"WARC/1.0", b"WARC/x.0", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
        (b"eins", b"eimS", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
        (b"WARC-Date", b"X: " + b"x" * 70_000 + b"\r\nWARC-Date", [(0, "broken-record"), (1, "zwei"), (2, "drei")]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_broken_record_does_not_affect_others(tmp_path: Path, old: bytes, new: bytes, expected: list[Any]) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(spoil(b"".join(wet(["eins", "zwei", "drei"])[1:]), old, new))
    assert read(path, quarantine_text=False) == expected


def test_a_length_that_swallows_the_next_record_is_noticed(tmp_path: Path) -> None:
    whole = b"".join(wet(["eins", "zwei", "drei"])[1:])
    swallowing = len(wet(["zwei"])[1]) + 4
    path = tmp_path / "a.warc"
    path.write_bytes(spoil(whole, b"Content-Length: 4", b"Content-Length: %d" % swallowing))
    assert read(path) == [(0, "broken-record"), (1, "drei")]


def test_files_without_any_record(tmp_path: Path) -> None:
    for name, content in {"a.warc": b"", "b.warc": b"no\nWARC/ record", "c.wet.gz": b"", "d.warc": b"\r\n"}.items():
        (tmp_path / name).write_bytes(content)
    plan, units = read_all(make_config(tmp_path))
    assert [(Path(each.source).name, each.reason) for each in [*flat(units), *plan.cut]] == [
        ("b.warc", "broken-record"),
        ("b.warc", "truncated-source"),
        ("c.wet.gz", "truncated-source"),
    ]


@FEW
@given(cut=st.integers(0, 10_000), unit_size=st.sampled_from([1, 400, 10**6]), compressed=st.booleans())
@example(cut=0, unit_size=1, compressed=True)
def test_a_truncated_file_gives_all_that_came_before_the_cut(
    tmp_path: Path, cut: int, unit_size: int, compressed: bool
) -> None:
    records = wet(TEXTS)
    whole = members(records) if compressed else b"".join(records)
    path = tmp_path / ("a.warc.gz" if compressed else "a.warc")
    kept = whole[: cut % len(whole)]
    path.write_bytes(kept)
    available, in_member = decompress_prefix(kept) if compressed else (kept, False)
    left, complete = len(available), 0
    for each in records:
        # An uncompressed record is complete without the blank line after it.
        if left < len(each) - (0 if compressed else 4):
            break
        left, complete = left - len(each), complete + 1
    texts = list(enumerate(TEXTS[: max(0, complete - 1)]))
    found = read(path, unit_size=unit_size)
    assert found[: len(texts)] == texts
    is_cut = in_member or left > 0 or (compressed and not kept)
    rest = [reason for _, reason in found[len(texts) :]]
    # One text looks like a record, so a cut in it seems to leave another record.
    assert rest in ([["truncated-source"], ["broken-record", "truncated-source"]] if is_cut else [[]])


def decompress_prefix(content: bytes) -> tuple[bytes, bool]:
    """The content of a gzip file up to its end, and whether it ends within a member."""
    found = b""
    while content:
        member = zlib.decompressobj(31)
        found += member.decompress(content)
        if not member.eof:
            return found, True
        content = member.unused_data
    return found, False


@FEW
@given(bit=st.integers(0, 10**6))
def test_a_flipped_bit_of_a_compressed_file_changes_no_text(tmp_path: Path, bit: int) -> None:
    whole = bytearray(members(wet(TEXTS, digest=False)))
    bit %= 8 * len(whole)
    whole[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "a.warc.wet.gz"
    path.write_bytes(whole)
    if whole[:2] != b"\x1f\x8b":
        with pytest.raises(UserError, match="is not gzip"):
            read(path)
        return
    found = read(path)
    texts = [each for each in found if each[1] not in {"truncated-source", "unreadable-source"}]
    assert texts == list(enumerate(TEXTS))[: len(texts)]
    assert len(texts) == len(TEXTS) or len(found) == len(texts) + 1


@FEW
@given(bit=st.integers(0, 10**6))
def test_a_flipped_bit_of_a_plain_file_changes_no_text_silently(tmp_path: Path, bit: int) -> None:
    whole = bytearray(b"".join(wet(TEXTS)))
    bit %= 8 * len(whole)
    whole[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "a.warc"
    path.write_bytes(whole)
    if b"WARC-Type: response" in whole:
        return
    found = read(path)
    texts = [text for _, text in found if text in TEXTS]
    wrong = len(found) - len(texts)
    # The bit may be an irrelevant one in a header, or may change the type to one without text.
    assert wrong or len(texts) >= len(TEXTS) - 1
    assert all(
        text in {"broken-record", "not-text", "truncated-source", "invalid-utf8"}
        for _, text in found
        if text not in TEXTS
    )


@FEW
@given(junk=st.binary(max_size=300), seed=st.integers(0, 2**32))
def test_no_content_makes_reading_fail(tmp_path: Path, junk: bytes, seed: int) -> None:
    order = random.Random(seed)
    pieces = [*wet(["eins", "zwei"]), junk, b"WARC/1.0\r\n", b"\r\n\r\n", b"Content-Length: 99999999999\r\n\r\n"]
    order.shuffle(pieces)
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(piece[: order.randrange(1, 400)] for piece in pieces))
    found = read(path, max_record_size=1000)
    assert all(isinstance(each, tuple) for each in found)


def test_quarantine_keeps_text_only_if_set(tmp_path: Path) -> None:
    path = write(tmp_path / "a.warc", [record("conversion", 0, b"SECRET\xff")])
    _, units = read_all(make_config(path))
    (kept,) = flat(units)
    assert isinstance(kept, Quarantined)
    assert kept.text is None
    assert "SECRET" not in kept.detail
    _, units = read_all(make_config(path, quarantine_text=True))
    assert flat(units)[0].text == "SECRET\\xff"


def join_records(*pieces: bytes) -> bytes:
    """Three records, each followed by a piece instead of a blank line."""
    bare = [each.removesuffix(b"\r\n\r\n") for each in wet(["eins", "zwei", "drei"], digest=False)[1:]]
    return b"".join(each + between for each, between in zip(bare, pieces, strict=True))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        join_records(b"\r\n" * 3, b"\r\n" * 2, b"\r\n" * 9),
        join_records(b"\r\n" * 2, b"\r\n" * 100_000, b"\r\n" * 2),
        join_records(b"\n\n", b"\n", b"\n"),
        join_records(b"\r\n", b"\n\r\n", b"\r\n\n"),
        join_records(b"", b"", b""),
        join_records(b" \r\n\t\r\n", b"\r\n\r\n \r\n", b"\r\n\r\n  "),
        b"\r\n\r\n" + join_records(b"\r\n\r\n", b"\r\n\r\n", b""),
    ],
    ids=["extra", "many", "bare", "mixed", "none", "blanks", "before"],
)
def test_separators_are_read_as_by_fastwarc(tmp_path: Path, content: bytes, compressed: bool) -> None:
    fast = [each.reader.read().decode() for each in ArchiveIterator(io.BytesIO(content), strict_mode=True)]
    path = tmp_path / ("a.warc.gz" if compressed else "a.warc")
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert read(path) == list(enumerate(fast)) == [(0, "eins"), (1, "zwei"), (2, "drei")]


def test_header_lines_may_end_with_a_bare_line_feed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.warc", [each.replace(b"\r\n", b"\n") for each in wet(["eins", "zwei"])])
    assert read(path) == [(0, "eins"), (1, "zwei")]
