"""Files of records that users hand in."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorers.errors import UserError
from scorers.records import read_records

ROWS = [{"text": "one, two\nthree", "label": "a"}, {"text": "four", "label": "b"}]


def read(path, **limits):
    return read_records(path, "Labels", ["text", "label"], **{"most": 100, **limits})


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text('text,label\n"one, two\nthree",a\nfour,b\n')
    else:
        path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "JSON", "csv", "parquet"])
def test_every_format_gives_the_same_records(tmp_path, suffix):
    records = read(write(tmp_path / f"labels.{suffix}"))
    assert [each.values for each in records] == ROWS
    unit = "line" if suffix.lower() in ("jsonl", "ndjson", "json") else "row"
    # Blank lines count as lines, and are no records.
    assert records[1].where.endswith(f"labels.{suffix}, {unit} {3 if unit == 'line' else 2}")


def test_columns_of_csv_may_be_text_whatever_they_hold(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("text,label\n007,1\n")
    assert read(path)[0].values == {"text": 7, "label": 1}
    assert read(path, texts=["text"])[0].values == {"text": "007", "label": 1}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('text,label\n"secret,a\nfour,b\n', 2),
        ('text,label\none,a\n"two\nlines",b\n"secret,a\nfour,b', 5),
        ('text,label\r\none,a\r\nfour,"secret\r\n', 3),
        ('\ufeff"text,label\none,a\n', 1),
        ('text,label\n"secret" more,a\n', 2),
    ],
)
def test_a_quote_of_csv_that_is_not_closed_is_refused(tmp_path, content, line):
    path = tmp_path / "labels.csv"
    path.write_text(content, newline="")
    with pytest.raises(UserError, match=f"line {line}: a value whose quotes are broken") as caught:
        read(path)
    assert "secret" not in str(caught.value)


def test_whole_quotes_of_csv_are_read(tmp_path):
    path = tmp_path / "labels.csv"
    long = "x" * 200_000  # more than Python's module reads by default
    path.write_text(f'text,label\n"a ""word"", and\nmore",a\n5" pipe,b\n"{long}",c\n')
    assert [each.values["text"] for each in read(path)] == ['a "word", and\nmore', '5" pipe', long]


def test_only_the_wanted_columns_of_parquet_are_read(tmp_path):
    path = write(tmp_path / "labels.parquet", [{"text": "x", "other": "y"}])
    assert read(path)[0].values == {"text": "x"}
    with pytest.raises(UserError, match=r"no column 'mine'\. Its columns: text, other"):
        read_records(path, "Labels", ["mine"], most=5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", b"x", "unknown kind of file"),
        ("labels.jsonl", b'{"text": "x"}\n{"secret', "line 2: not valid JSON"),
        ("labels.jsonl", b'["secret"]', "line 1: not a JSON object"),
        ("labels.jsonl", b'{"text": NaN}', "line 1: not valid JSON"),
        ("labels.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("labels.jsonl", b'{"text": {"a": ["\\ud800secret"]}}', "line 1: half of a surrogate pair"),
        ("labels.jsonl", b'{"\\udc00": "secret"}', "line 1: half of a surrogate pair"),
        ("labels.jsonl", b'\n{"text": "\xff"}', "line 2: not UTF-8"),
        ("labels.jsonl", b" \n\n", "the file is empty"),
        ("labels.csv", b"", "the file is empty"),
        ("labels.csv", b"text,label\n", "the file is empty"),
        ("labels.csv", b"text,label\nsecret\n", "not a whole CSV file"),
        ("labels.csv", b"text,label\nsecret\xff,a\n", "not UTF-8 text|CSV file in UTF-8"),
        ("labels.parquet", b"PAR1 secret", "not a whole PARQUET file"),
    ],
)
def test_broken_files_are_refused_without_their_text(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "secret" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_damaged_page_of_parquet_is_called_damaged(tmp_path):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, write_page_checksum=True, compression="none")
    content = bytearray(path.read_bytes())
    content[content.index(b"three")] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a whole PARQUET file"):
        read(path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix):
    path = write(tmp_path / f"labels.{suffix}")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [each.values for each in read(path)] == ROWS


def test_a_pipe_and_too_much_are_refused(tmp_path):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="cannot be read"):
        read(pipe)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read(tmp_path / "missing.csv")
    path = write(tmp_path / "labels.jsonl")
    with pytest.raises(UserError, match="more than 1 records"):
        read(path, most=1)
    with pytest.raises(UserError, match="cannot be read: it has more than the 10 bytes"):
        read(path, largest=10)
    # Few bytes that unpack to many.
    bomb = write(tmp_path / "labels.parquet", [{"text": "x" * 100_000, "label": "a"}] * 50)
    assert bomb.stat().st_size < 20_000
    with pytest.raises(UserError, match="holds more than 1,000,000 bytes"):
        read(bomb, largest=1_000_000)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([b"\xff"]).view(pa.string()),
        pa.array([2**62], pa.timestamp("us")),
        pa.array([2**31 - 1], pa.date32()),
    ],
)
def test_values_that_python_lacks_are_refused(tmp_path, values):
    pq.write_table(pa.table({"label": values}), tmp_path / "labels.parquet")
    with pytest.raises(UserError, match="values that cannot be read"):
        read(tmp_path / "labels.parquet")


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("text,text\na,b\n")
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), tmp_path / "l.parquet")
    for name in ("labels.csv", "l.parquet"):
        with pytest.raises(UserError, match="'text' as a column more than once"):
            read(tmp_path / name)
