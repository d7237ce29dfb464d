"""The format: what readers of a labelled dataset return, and what they refuse."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset import open_dataset
from pipeline.dataset.manifest import DamagedError, parse_manifest
from pipeline.dataset.schema import dataset_schema, unit_schema
from pipeline.dataset.tags import add_tags
from pipeline.dataset.writer import parquet_writer
from scorers.errors import UserError
from tests.datasets import make_dataset, sentences_of
from tests.pipeline.committed import commit_units

TEXTS = ["One. Zwei — «drei»! 🙂 Four", "", "Null\0byte. End", "x" * 5000]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed") / "out"
    return make_dataset(folder, TEXTS * 5, {"toxicity": lambda sentence: len(sentence) / 100}, shard_rows=7)


@pytest.fixture
def dataset(sealed, tmp_path):
    return Path(shutil.copytree(sealed, tmp_path / "out"))


def test_rows_come_in_order_and_sentences_join_to_the_text(sealed):
    rows = [row for batch in open_dataset(str(sealed)).read_batches(rows=3) for row in batch.to_pylist()]
    assert [row["text"] for row in rows] == TEXTS * 5
    for row in rows:
        starts = [0, *row["ends"][:-1]]
        sentences = [row["text"][start:end] for start, end in zip(starts, row["ends"], strict=bool(row["ends"]))]
        assert "".join(sentences) == row["text"]
        assert len(sentences) == len(row["toxicity"]) == len(row["toxicity_aligned"])


def test_only_the_requested_columns_are_read(sealed):
    batches = list(open_dataset(str(sealed)).read_batches(["doc_id", "toxicity"], rows=4))
    assert {tuple(batch.schema.names) for batch in batches} == {("doc_id", "toxicity")}
    assert max(batch.num_rows for batch in batches) == 4


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}"])
def test_a_dataset_opens_by_path_and_by_uri(sealed, form):
    assert open_dataset(form.format(sealed)).manifest.rows == 20


def test_a_dataset_opens_by_a_relative_path(sealed, monkeypatch):
    monkeypatch.chdir(sealed.parent)
    assert open_dataset("out").manifest.rows == 20


def test_the_error_for_a_missing_column_names_the_existing_ones(sealed):
    with pytest.raises(UserError, match=r"no score column 'pii'; it has: toxicity\..*--scorer pii"):
        open_dataset(str(sealed)).require_column("pii")


@pytest.mark.parametrize("uri", ["ftp://host/x", "s3:/bucket", "az://box/x"])
def test_a_location_that_cannot_be_opened_is_refused(uri, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UserError, match=r"Cannot open ftp|Cannot read s3:/|AZURE_STORAGE_ACCOUNT_NAME"):
        open_dataset(uri)


def test_a_missing_shard_is_refused_at_the_start(dataset):
    (dataset / "data/0001/part-00001.parquet").unlink()
    with pytest.raises(DamagedError, match=r"part-00001\.parquet is damaged: the file is missing.*phf verify"):
        open_dataset(str(dataset))


def test_a_shard_with_other_columns_is_refused_at_the_start(dataset):
    manifest = json.loads((dataset / "manifest.json").read_text())
    path = dataset / manifest["shards"][0]["path"]
    table = pq.read_table(path).drop_columns(["meta"])
    pq.write_table(table, path)
    manifest["shards"][0]["size"] = path.stat().st_size
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="its columns are not those of the manifest"):
        open_dataset(str(dataset))


def test_a_shard_with_another_number_of_rows_is_refused_at_the_start(dataset):
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["shards"][0]["rows"] += 1
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="it has 7 rows, not 8"):
        open_dataset(str(dataset))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged at its start"),
        ("{}", "is damaged at generation: Field required"),
        ('{"sealed": false}', "is damaged at sealed"),
        ('{"schema_version": 7, "sealed": true}', "schema version 7, but this phf reads versions 1 and 2"),
    ],
)
def test_the_error_for_a_damaged_manifest_says_where(text, message):
    with pytest.raises(UserError, match=message):
        parse_manifest(text, "DIR/manifest.json")


def test_a_manifest_round_trips(sealed):
    text = (sealed / "manifest.json").read_text()
    assert parse_manifest(text, "m").to_json() == text


def test_the_same_rows_make_the_same_bytes_with_page_checksums_and_no_text_in_the_footer(tmp_path):
    secret = "a sentence that nobody should find in a footer"
    table = pa.Table.from_pylist(
        [
            {"doc_id": "d", "source": "s", "position": n, "text": secret, "meta": "{}", "ends": [46], "c": [0.5]}
            for n in range(3)
        ],
        schema=unit_schema(["c"]),
    )
    contents = []
    for name in ("one", "two"):
        with (tmp_path / name).open("wb") as sink, parquet_writer(sink, table.schema) as writer:
            writer.write_table(table)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    footer = int.from_bytes(contents[0][-8:-4], "little")
    assert secret.encode() not in contents[0][-footer - 8 :]
    flipped = bytearray(contents[0])
    flipped[pq.ParquetFile(tmp_path / "one").metadata.row_group(0).column(3).data_page_offset + 40] ^= 1
    with pytest.raises(OSError, match=r"checksum|CRC"):
        pq.ParquetFile(pa.BufferReader(bytes(flipped)), page_checksum_verification=True).read()


@given(
    st.lists(st.none() | st.lists(st.floats(0, 2, width=32), max_size=5), max_size=8),
    st.floats(0, 2, width=32),
    st.data(),
)
def test_tags_mark_scores_at_most_the_threshold(scores, threshold, data):
    rows = [
        {"doc_id": "", "source": "", "position": n, "text": "", "meta": "", "ends": [], "c": each}
        for n, each in enumerate(scores)
    ]
    table = pa.Table.from_pylist(rows, schema=unit_schema(["c"]))
    start = data.draw(st.integers(0, len(rows)))
    tagged = add_tags(table.slice(start), ["c"], {"c": threshold})
    assert tagged.schema == dataset_schema(["c"])
    assert tagged["c"].to_pylist() == scores[start:]
    assert tagged["c_aligned"].to_pylist() == [
        None if each is None else [score <= threshold for score in each] for each in scores[start:]
    ]


def test_a_threshold_of_the_manifest_tags_alike_in_single_and_double_precision(tmp_path):
    folder = make_dataset(tmp_path / "made", ["One."], {"toxicity": [[0.1]]}, {"toxicity": 0.1})
    dataset = open_dataset(str(folder))
    (row,) = next(dataset.read_batches()).to_pylist()
    value = dataset.manifest.thresholds["toxicity"].value
    assert row["toxicity_aligned"] == [True]
    assert np.float32(0.1) <= value
    assert float(np.float32(0.1)) <= value


def load_with_datasets(folder, tmp_path):
    """Open a dataset with Hugging Face's `datasets` in a separate process, offline."""
    code = (
        "import json, sys\nfrom datasets import load_dataset\n"
        "rows = load_dataset(sys.argv[1], split='train')\n"
        "features = {name: str(kind) for name, kind in rows.features.items()}\n"
        "print(json.dumps({'features': features, 'rows': rows.to_list()}))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_hugging_face_datasets_opens_it_and_after_a_new_generation_finds_the_new_one(tmp_path):
    units = [[{"text": f"Satz {n} — ja. Nein!", "toxicity": [n / 10, 0.0] if n else None} for n in range(10)]]
    labelled = commit_units(tmp_path / "out", units, thresholds={"toxicity": 0.4}, shard_size=500)
    manifest = labelled.seal()
    assert len(manifest.shards) > 1
    loaded = load_with_datasets(labelled.folder, tmp_path)
    expected = [row for batch in open_dataset(str(labelled.folder)).read_batches() for row in batch.to_pylist()]
    assert loaded["rows"] == expected
    assert list(loaded["features"]) == dataset_schema(["toxicity"]).names
    assert "float32" in loaded["features"]["toxicity"]
    labelled.seal(generation=2, thresholds={"toxicity": 0.0})
    tags = [row["toxicity_aligned"] for row in load_with_datasets(labelled.folder, tmp_path)["rows"]]
    assert tags == [None] + [[False, True]] * 9


def test_the_format_is_read_without_ray_or_torch():
    code = (
        "import sys, pipeline.dataset; print([name for name in ('ray', 'torch', 'deepspeed') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@given(st.text(max_size=80), st.sampled_from(["prose", "python"]))
def test_the_helpers_sentences_join_to_the_text(text, kind):
    assert "".join(sentences_of(text, kind)) == text
