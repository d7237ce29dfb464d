"""No part of the inputs is dropped silently: every command refuses, or counts and names, what is not read."""

import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.records import Record
from pipeline.job.plan_files import encode_plan, read_plan, write_plan
from pipeline.storage.open import open_storage
from scorers.errors import UserError
from tests.pipeline.corpora import flat, make_config, read_all, write_lines
from tests.pipeline.here import rows_of, run

LINES = b"".join(json.dumps({"id": str(n), "text": f"Text {n}. Fine."}).encode() + b"\n" for n in range(200))
ARRAY = json.dumps([json.loads(line) for line in LINES.splitlines()]).encode()


@pytest.mark.parametrize(
    ("name", "content", "seems"),
    [
        ("a.jsonl", json.dumps(json.loads(ARRAY), indent=1).encode(), "a JSON array"),
        ("a.json", ARRAY, "a JSON array"),
        ("a.json.gz", gzip.compress(ARRAY), "a JSON array"),
        ("a.jsonl", gzip.compress(LINES), "gzip"),
        ("a.ndjson", zstandard.compress(LINES), "zstd"),
        ("a.jsonl", lzma.compress(LINES), "xz"),
        ("a.jsonl.gz", LINES, "JSON lines"),
        ("a.jsonl.zst", LINES, "JSON lines"),
        ("a.jsonl.gz", zstandard.compress(LINES), "zstd"),
        ("a.txt.gz", b"Plain.\n", "plain text"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "UTF-16"),
        ("a.jsonl", LINES.decode().encode("utf-16-be"), "UTF-16"),
        ("a.jsonl", LINES.decode().encode("utf-32-le"), "UTF-32"),
        ("a.jsonl", b"PK\x03\x04" + bytes(100), "a zip archive"),
        ("a.jsonl", b"<!DOCTYPE html>\n<html>\n404", "HTML"),
        ("a.jsonl", b"id,text\n1,One.\n2,Two.\n", "plain text"),
        ("a.json", b'{\n "text": "One."\n}\n', "one JSON object over several lines"),
        ("a.parquet", LINES, "JSON lines"),
        ("a.arrow", LINES, "JSON lines"),
        ("a.warc.gz", b"WARC/1.0\r\n", "WARC"),
        ("a.warc", b"<html></html>", "HTML"),
        ("a.arrow", b"\0\xff\xff\xff" + b"\x20\0\0\0" * 9 + b"\1\2\3\0" * 9, "binary data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_whose_content_contradicts_its_name_is_refused(
    tmp_path: Path, name: str, content: bytes, seems: str
) -> None:
    (tmp_path / "b.jsonl").write_bytes(LINES)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*looks like {seems}.*leave the file out"):
        make_plan(make_config(path, tmp_path / "b.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.jsonl.gz", gzip.compress(gzip.compress(LINES)), "It is compressed twice: decompress it once (gzip -dc)"),
        ("a.jsonl.zst", zstandard.compress(gzip.compress(LINES)), "It is compressed twice: decompress it once (gzip"),
        ("a.warc.gz", gzip.compress(lzma.compress(LINES)), "It is compressed twice: decompress it once (xz -dc)"),
        ("a.jsonl", gzip.compress(LINES), "Rename it to end with .gz"),
        ("a.jsonl.gz", LINES, "Rename it without .gz"),
        ("a.parquet", LINES, "Rename it to end with .jsonl"),
        ("a.parquet.gz", gzip.compress(LINES), "Decompress it (gzip -dc)"),
        ("a.warc", LINES, "Rename it to end with .jsonl"),
        ("a.warc.gz", gzip.compress(LINES), "Rename it to end with .jsonl.gz"),
        ("a.jsonl.gz", gzip.compress(b"WARC/1.0\r\n" * 2), "Rename it to end with .warc.gz"),
        ("a.jsonl.gz", gzip.compress(b"PAR1" + bytes(99)), "Decompress it, and rename it to end with .parquet"),
        ("a.jsonl", b"PAR1" + bytes(99), "Rename it to end with .parquet"),
        ("a.jsonl.gz", gzip.compress(b"Plain.\nText.\n"), "Repair it"),
    ],
    # gzip output contains the time, and the workers of pytest must agree on the ids.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_remedy_for_a_misnamed_file_works(tmp_path: Path, name: str, content: bytes, remedy: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"\. {re.escape(remedy)}.*, or leave the file out"):
        make_plan(make_config(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": "cut o', LINES[:1000], b'x\n{"text": "One."}\n'])
def test_damaged_records_do_not_make_the_file_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(LINES)
    make_plan(make_config(tmp_path))


def test_every_command_lists_left_out_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = Path("corpus")
    corpus.mkdir()
    (corpus / "a.jsonl").write_bytes(b'{"text": "One. Two!"}\n')
    (corpus / "c4-train.00000-of-01024.json.gz").write_bytes(gzip.compress(b'{"text": "Three."}\n'))
    (corpus / "b.json").write_bytes(b'{"text": "Four."}\n')
    (corpus / "book.TXT.gz").write_bytes(gzip.compress(b"Five.\n"))
    (corpus / "d.jsonl.zstd").write_bytes(zstandard.compress(b'{"text": "Six."}\n'))
    (corpus / "package.json").write_bytes(b'{\n  "name": "x"\n}\n')
    for name in ("README.md", "LICENSE", "e.md", "f.csv.gz"):
        (corpus / name).write_bytes(b"x")
    expected = {".md": 2, ".csv.gz": 1, ".json without one record per line": 1, "": 1}
    label = ["label", "corpus", "--output", "out", "--scorer", "pep8"]

    def left_out(facts: Any) -> dict[str, int]:
        return {each["type"]: each["files"] for each in facts["left_out"]}

    assert left_out(run(*label)) == expected
    assert sorted(row["text"] for row in rows_of("out")) == ["Five.\n", "Four.", "One. Two!", "Six.", "Three."]
    assert left_out(json.loads(Path("out/manifest.json").read_text())) == expected
    assert left_out(run("preview", "corpus", "--scorer", "pep8")) == expected
    assert left_out(run("bench", "scorers", "corpus", "--scorer", "pep8", "--seconds", "0")["corpus"]) == expected
    (corpus / "g.md").write_bytes(b"came later")
    assert run(*label)["already_done"]
    assert run("verify", "out", "--inputs")["ok"]
    (corpus / "h.ndjson").write_bytes(b'{"text": "Seven."}\n')
    assert left_out(run(*label, "--extend")) == expected | {".md": 3}


def test_parquet_and_compressed_settings_are_recognised_by_name(tmp_path: Path) -> None:
    for name in ("a.snappy.parquet", "b.parquet.gzip", "c.zst.parquet"):
        pq.write_table(pa.table({"text": [name]}), tmp_path / name)
    _, units = read_all(make_config(tmp_path))
    assert [each.text for each in flat(units) if isinstance(each, Record)] == [
        *("a.snappy.parquet", "b.parquet.gzip", "c.zst.parquet")
    ]


def test_files_written_by_phf_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(b'{"text": "One. Two!"}\n')
    label = ["label", ".", "--output", "out", "--scorer", "pep8", "--log", "run.jsonl"]
    run(*label)
    assert run(*label)["already_done"]
    assert run(*label[:-1], "other.txt")["already_done"]
    assert run("verify", "out", "--inputs")["ok"]
    assert run("label", ".", "--output", "out2", "--scorer", "pep8")["records"] == 1
    assert [each.uri for each in find_inputs(["./**/*"]).sources] == ["a.jsonl"]
    assert "was written by phf" in run("label", "out", "--output", "out3", "--scorer", "pep8", expect=2)
    assert run("label", "out/data", "--output", "out3", "--scorer", "pep8")["records"] == 1


def test_a_share_never_allows_an_input_that_was_not_read(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"{n} {'x' * (n % 7)}"}).encode() + b"\n" for n in range(3000))
    write_lines(tmp_path / "a.jsonl", lines)
    label = ["label", tmp_path / "a.jsonl", "--scorer", "pep8", "--max-quarantined"]
    whole = write_lines(tmp_path / "b.jsonl.gz", lines).read_bytes()
    for number, (content, share, status) in enumerate(
        [
            (whole + b"garbage", "1%", 0),
            (whole + b"garbage", "0%", 3),
            (whole[: len(whole) // 2], "1%", 3),
            (whole[:5], "60%", 3),
            (whole[:5], "1", 0),
        ]
    ):
        (tmp_path / "b.jsonl.gz").write_bytes(content)
        given = [*label, share, "--output", tmp_path / f"out{number}", tmp_path / "b.jsonl.gz"]
        facts = run(*given, expect=status)
        if status == 0:
            assert [(Path(each["source"]).name, each["unread"] > 0) for each in facts["cut"]] == [("b.jsonl.gz", True)]
        shown = run("status", tmp_path / f"out{number}")
        assert [Path(each["source"]).name for each in shown["cut"]] == ["b.jsonl.gz"]


def test_a_dataset_without_losses_has_no_new_keys(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    whole = make_plan(make_config(tmp_path))
    named, files = encode_plan(["."], whole)
    assert "unread" not in named.model_dump_json() + str(pq.read_schema(pa.BufferReader(files[named.sources.path])))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES)[:-20])
    plan = make_plan(make_config(tmp_path))
    write_plan(storage := open_storage(str(tmp_path / "out")), 1, ["."], plan)
    stored = read_plan(storage)
    assert stored is not None
    assert [each.unread > 0 for each in stored.plan.entries] == [False, True]
    assert stored.plan.entries == plan.entries


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=30),
    suffix=st.sampled_from([".jsonl", ".jsonl.gz", ".json.zst", ".ndjson.bz2", ".jsonl.xz", ".parquet", ".txt.gz"]),
    cut=st.none() | st.floats(0, 1),
    members=st.integers(1, 3),
)
def test_every_record_is_labelled_or_reported(
    tmp_path: Path, texts: list[str], suffix: str, cut: float | None, members: int
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif suffix == ".txt.gz":
        texts = texts[:1]
        path.write_bytes(gzip.compress(texts[0].encode()))
    else:
        write_lines(path, b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts), members)
    whole = path.read_bytes()
    kept = whole if cut is None else whole[: int(cut * len(whole))]
    path.write_bytes(kept)
    plan, units = read_all(make_config(path))
    path.unlink()
    records = flat(units)
    found = [each.text for each in records if isinstance(each, Record)]
    assert found == texts[: len(found)]
    assert plan.records == len(records)
    named = len(records) - len(found) + len(plan.cut)
    if len(kept) == len(whole):
        assert (found, named) == (texts, 0)
    elif suffix != ".jsonl" and members == 1:
        assert (len(found) < len(texts) and named) or plan.entries[0].unread
    assert all(entry.unread > 0 for entry in plan.entries) == bool(plan.cut)
