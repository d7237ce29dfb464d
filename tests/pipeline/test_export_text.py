"""Export as text with control tokens: what training would read, resumable, the same bytes on every run."""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from pipeline.dataset.derived import text_hash
from pipeline.dataset.tags import ALIGNED, MISALIGNED
from pipeline.export.text import EXPORT_NAME, ExportRecord, Tagging, export_text
from pipeline.export.text_files import WRITERS
from pipeline.storage.new_files import STAGING
from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.pipeline.here import run
from training.data.index import StreamOptions, has_tag

FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = ["Good. Bad. Good again.", "Bad, bad.", "", "Fine. Ünd so.", "No score."]
SCORES = [[0.1, 0.9, 0.2], [0.8], [], [0.1, 0.5], None]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "made", TEXTS, {"x": SCORES}, {"x": 0.5}, shard_rows=2)


def read_lines(content: bytes) -> list[dict[str, str]]:
    return [json.loads(line) for line in content.decode().splitlines()]


def read_mds(path: Path) -> list[dict[str, str]]:
    """The samples of a shard, read by the description of its format."""
    content = path.read_bytes()
    count = int(np.frombuffer(content, "<u4", 1)[0])
    offsets = np.frombuffer(content, "<u4", count + 1, 4).tolist()
    config = json.loads(content[8 + 4 * count : offsets[0]])
    (entry,) = (
        each
        for each in json.loads((path.parent / "index.json").read_text())["shards"]
        if each["raw_data"]["basename"] == path.name
    )
    assert {key: entry[key] for key in config} == config
    assert (entry["samples"], entry["raw_data"]["bytes"], offsets[-1]) == (count, len(content), len(content))
    rows = []
    for start, end in pairwise(offsets):
        values, place = {}, start + 4 * len(config["column_names"])
        for name, size in zip(config["column_names"], np.frombuffer(content, "<u4", 2, start).tolist(), strict=True):
            values[name] = content[place : place + size].decode()
            place += size
        assert place == end
        rows.append(values)
    return rows


READERS: dict[str, Callable[[Path], list[dict[str, str]]]] = {
    "jsonl": lambda path: read_lines(path.read_bytes()),
    "jsonl.gz": lambda path: read_lines(gzip.decompress(path.read_bytes())),
    "jsonl.zst": lambda path: read_lines(zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()),
    "parquet": lambda path: pq.read_table(path).to_pylist(),
    "mds": read_mds,
}


def rows_in(folder: Path) -> list[dict[str, str]]:
    record = ExportRecord.model_validate_json((folder / EXPORT_NAME).read_bytes())
    found = []
    for file in record.files:
        rows = READERS[record.format](folder / file.path)
        assert len(rows) == file.rows
        found += rows
    assert len(found) == record.documents
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("form", list(READERS))
def test_text_is_tagged_by_sentence(tmp_path: Path, made: Path, form: str) -> None:
    written = run("export", made, "--column", "x", "--format", form, "--output", tmp_path / "out")
    assert [row["text"] for row in rows_in(tmp_path / "out")] == [
        f"{ALIGNED}Good. {MISALIGNED}Bad. {ALIGNED}Good again.",
        f"{MISALIGNED}Bad, bad.",
        f"{ALIGNED}Fine. {ALIGNED}Ünd so.",
    ]
    assert [row["id"] for row in rows_in(tmp_path / "out")] == [f"corpus.jsonl#{number}" for number in (0, 1, 3)]
    assert (written["documents"], written["sentences"], written["empty"], written["left_out"]) == (3, 6, 1, 1)
    assert sorted(written["files"]) == sorted(contents(tmp_path / "out"))


def test_text_is_tagged_by_document_or_not_and_filtered(tmp_path: Path, made: Path) -> None:
    def texts(*options: object) -> list[str]:
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        run("export", made, "--column", "x", "--format", "jsonl", "--output", output, *options)
        return [row["text"] for row in rows_in(output)]

    assert texts("--tags", "document") == [ALIGNED + TEXTS[0], MISALIGNED + TEXTS[1], ALIGNED + TEXTS[3]]
    assert texts("--tags", "document", "--threshold", "0.35") == [
        MISALIGNED + TEXTS[0],
        MISALIGNED + TEXTS[1],
        ALIGNED + TEXTS[3],
    ]
    assert texts("--tags", "none", "--max-mean", "0.5") == [TEXTS[0], TEXTS[3]]
    assert texts("--max-mean", "0.3") == [f"{ALIGNED}Fine. {ALIGNED}Ünd so."]
    assert texts("--drop-tags", "1") == [TEXTS[0], TEXTS[1], TEXTS[3]]


class Hashes:
    """What `has_tag` asks of a token store."""

    def __init__(self, texts: list[str], counts: list[int]) -> None:
        self.text_hashes = np.array([text_hash(text) for text in texts], dtype=np.uint64)
        self.document_offsets = np.concatenate([[0], np.cumsum(counts)])


@FEW
@given(
    documents=st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6), min_size=1, max_size=6),
    drop=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_the_tags_are_those_of_training(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[float]], drop: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("tags")
    sentences = [[f"S{index} {number}. " for number in range(len(each))] for index, each in enumerate(documents)]
    texts = ["".join(each) for each in sentences]
    split = dict(zip(texts, sentences, strict=True))
    made = make_dataset(folder / "made", texts, {"x": documents}, {"x": 0.5}, split=lambda text, _: split[text])
    export_text(open_dataset(str(made)), "x", str(folder / "out"), "jsonl", Tagging(drop_tags=drop, seed=seed))
    counts = list(map(len, documents))
    options = StreamOptions(8, 0, tag_bounds=(0.5,), tag_ids=(1, 2), drop_tags=drop, seed=seed)
    numbers = np.arange(sum(counts))
    kept = has_tag(Hashes(texts, counts), options, numbers, np.repeat(np.arange(len(counts)), counts))  # type: ignore[arg-type]
    expected = iter(
        (ALIGNED if score <= np.float32(0.5) else MISALIGNED) * bool(keep)
        for score, keep in zip((score for each in documents for score in each), kept, strict=True)
    )
    wanted = ["".join(next(expected) + sentence for sentence in each) for each in sentences]
    assert [row["text"] for row in rows_in(folder / "out")] == wanted


def test_a_text_that_contains_a_control_token_is_left_out(tmp_path: Path) -> None:
    texts = ["Good.", f"Ends well.{ALIGNED} Bad.", f"{MISALIGNED}"]
    made = make_dataset(tmp_path / "made", texts, {"x": lambda _: 0.1}, {"x": 0.5})
    result = CliRunner().invoke(app, ["export", str(made), "-c", "x", "--format", "jsonl", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "Left out: 2 documents whose text contains a control token." in result.stdout
    assert [row["text"] for row in rows_in(tmp_path / "out")] == [f"{ALIGNED}Good."]
    plain = run("export", made, "-c", "x", "--format", "jsonl", "--tags", "none", "-o", tmp_path / "plain")
    assert plain["documents"] == 3


def test_hugging_face_reads_the_files(tmp_path: Path, made: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for form in ("jsonl", "parquet"):
        run("export", made, "--column", "x", "--format", form, "--output", tmp_path / form)
        found = datasets.load_dataset(str(tmp_path / form), cache_dir=str(tmp_path / "cache"))
        assert list(found) == ["train"]
        assert list(found["train"]["text"]) == [row["text"] for row in rows_in(tmp_path / form)]


def test_mosaicml_streaming_reads_the_shards(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = pytest.importorskip(
        "streaming.base.format", reason="mosaicml-streaming is not installed", exc_type=ImportError
    )
    monkeypatch.setattr("pipeline.export.text_files._MDS_BYTES", 80)
    run("export", made, "--column", "x", "--format", "mds", "--output", tmp_path / "out")
    found = []
    for entry in json.loads((tmp_path / "out" / "index.json").read_text())["shards"]:
        reader = reading.reader_from_json(str(tmp_path / "out"), None, entry)
        reader.validate(False)
        found += [reader[number] for number in range(len(reader))]
    assert found == rows_in(tmp_path / "out")
    from streaming import MDSWriter

    columns = {"id": "str", "text": "str"}
    with MDSWriter(out=str(tmp_path / "theirs"), columns=columns) as writer:
        for row in found:
            writer.write(row)
    monkeypatch.undo()
    single = make_dataset(tmp_path / "single", TEXTS, {"x": SCORES}, {"x": 0.5})
    run("export", single, "--column", "x", "--format", "mds", "--output", tmp_path / "ours")
    (theirs,), (ours,) = (sorted((tmp_path / name).glob("*.mds")) for name in ("theirs", "ours"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_shards_of_mds_are_cut_by_size(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("export", made, "--column", "x", "--format", "mds", "--output", tmp_path / "whole")
    monkeypatch.setattr("pipeline.export.text_files._MDS_BYTES", 80)
    run("export", made, "--column", "x", "--format", "mds", "--output", tmp_path / "cut")
    assert [len(list((tmp_path / name).glob("*.mds"))) for name in ("whole", "cut")] == [2, 3]
    assert rows_in(tmp_path / "whole") == rows_in(tmp_path / "cut")


@pytest.mark.parametrize("form", list(WRITERS))
def test_an_interrupted_export_continues_to_the_same_bytes(
    tmp_path: Path, made: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(str(made))
    export_text(dataset, "x", str(tmp_path / "whole"), form, Tagging())
    kind, done = type(WRITERS[form]), []
    write = kind.write

    def failing(self: Any, storage: Any, folder: str, number: int, rows: Iterator[Any]) -> Any:
        if number == 2:
            raise OSError(5, "broken")
        done.append(number)
        return write(self, storage, folder, number, rows)

    monkeypatch.setattr(kind, "write", failing)
    with pytest.raises(OSError, match="broken"):
        export_text(dataset, "x", str(tmp_path / "out"), form, Tagging())
    assert not (tmp_path / "out" / EXPORT_NAME).exists()
    with pytest.raises(UserError, match="holds an unfinished export with other settings"):
        export_text(dataset, "x", str(tmp_path / "out"), form, Tagging(tags="document"))
    assert done == [0, 1]
    monkeypatch.setattr(kind, "write", write)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert before
    export_text(dataset, "x", str(tmp_path / "out"), form, Tagging())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out" / STAGING).exists()


def test_the_record_describes_the_files(tmp_path: Path, made: Path) -> None:
    run("export", made, "--column", "x", "--format", "parquet", "--max-mean", "0.6", "--output", tmp_path / "out")
    record = ExportRecord.model_validate_json((tmp_path / "out" / EXPORT_NAME).read_bytes())
    for file in [*record.files, *record.index]:
        content = (tmp_path / "out" / file.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    assert (record.column, record.threshold, record.max_mean, record.filtered) == ("x", 0.5, 0.6, 1)
    total = record.documents + record.left_out + record.unsearched + record.empty + record.filtered + record.marked
    assert total == open_dataset(str(made)).manifest.rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "csv", "--output", "new"), "There is no format 'csv'; choose one of: paper, jsonl"),
        (("--format", "jsonl", "--output", "full"), "exists already and is not overwritten"),
        (("--format", "jsonl", "--output", "new.jsonl"), "the format jsonl writes a folder"),
        (("--format", "jsonl", "--output", "new", "--max-mean", "nan"), "--max-mean nan is not a finite number"),
        (("--output", "new.jsonl", "--drop-tags", "0.1"), "--drop-tags is for text with control tokens"),
        (("--format", "jsonl", "--output", "new", "--redact", "x"), "spans"),
    ],
)
def test_an_impossible_export_is_refused(
    tmp_path: Path, made: Path, options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["export", str(made), "--column", "x", *options])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dataset_that_is_not_sealed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    result = CliRunner().invoke(
        app, ["export", str(tmp_path), "-c", "x", "--format", "jsonl", "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_of_an_unfinished_export_is_named(tmp_path: Path, made: Path) -> None:
    dataset = open_dataset(str(made))
    shard = made / dataset.manifest.shards[1].path
    whole = shard.read_bytes()
    shard.write_bytes(bytes(len(whole)))
    with pytest.raises(UserError, match="damaged"):
        export_text(dataset, "x", str(tmp_path / "out"), "jsonl", Tagging())
    shard.write_bytes(whole)
    (record,) = (tmp_path / "out" / STAGING).rglob("part-00000.json")
    record.write_bytes(record.read_bytes().replace(b'"documents":2', b'"documents":3'))
    with pytest.raises(UserError, match=r"part-00000.json is damaged: its checksum is wrong"):
        export_text(dataset, "x", str(tmp_path / "out"), "jsonl", Tagging())
