"""Inputs on a real object store: a local SeaweedFS."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.inputs import find_sources
from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.pipeline.corpora import flat, make_config, read_all
from tests.pipeline.here import rows_of, run

LINES = b"".join(json.dumps({"text": f"Text {index}."}).encode() + b"\n" for index in range(50))


@pytest.fixture(scope="module")
def bucket(s3: dict[str, str]) -> pafs.FileSystem:
    filesystem, _ = pafs.FileSystem.from_uri("s3://corpus/?allow_bucket_creation=true")
    filesystem.create_dir("corpus")
    for name, content in {
        "x/a.jsonl": LINES,
        "x/deep/b c%20d.jsonl.gz": pa.compress(LINES, "gzip", asbytes=True),
        "x/.hidden.jsonl": LINES,
        "x/README.md": b"no input",
        "x/f.py": b"x = 1\n",
        "x/labelled/data/part.txt": b"made by us",
    }.items():
        with filesystem.open_output_stream(f"corpus/{name}", compression=None) as stream:
            stream.write(content)
    return filesystem


def test_folders_files_and_globs(bucket: pafs.FileSystem) -> None:
    def uris(argument: str) -> list[str]:
        return [source.uri for source in find_sources([argument], output="s3://corpus/x/labelled")]

    everything = ["s3://corpus/x/a.jsonl", "s3://corpus/x/deep/b c%20d.jsonl.gz", "s3://corpus/x/f.py"]
    assert uris("s3://corpus/x") == uris("s3://corpus/") == everything
    assert uris("s3://corpus/**/*.jsonl*") == everything[:2]
    assert uris("s3://corpus/x/*.jsonl*") == everything[:1]
    assert uris("s3://corpus/x/deep/b c%20d.jsonl.gz") == everything[1:2]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("s3://corpus/x/README.md", "unknown type"),
        ("s3://corpus/y", "There is no input s3://corpus/y"),
        ("s3://corpus/y/*.jsonl", "holds no input"),
        ("s3://nobucket/a.jsonl", "There is no input s3://nobucket"),
        ("s3://corpus/x/labelled/data", "inside the output"),
    ],
)
def test_invalid_inputs_are_refused(bucket: pafs.FileSystem, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_sources([argument], output="s3://corpus/x/labelled")


def test_records_are_read_as_from_a_local_disk(bucket: pafs.FileSystem, tmp_path: Path) -> None:
    plan, units = read_all(make_config("s3://corpus/x", output="s3://corpus/x/labelled", unit_size=300))
    (tmp_path / "deep").mkdir()
    for name in ("a.jsonl", "deep/b c%20d.jsonl.gz", "f.py"):
        with bucket.open_input_stream(f"corpus/x/{name}", compression=None) as stream:
            (tmp_path / name).write_bytes(stream.read())
    local, local_units = read_all(make_config(tmp_path, unit_size=300))
    assert plan.units == local.units
    assert [entry.sha256 for entry in plan.entries] == [entry.sha256 for entry in local.entries]
    assert [each.text for each in flat(units)] == [each.text for each in flat(local_units)]
    assert flat(units)[0].source == "s3://corpus/x/a.jsonl"


def test_the_query_opens_a_source_but_is_not_part_of_its_name(
    bucket: pafs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    uri = f"s3://corpus/x/a.jsonl?scheme=http&region=us-east-1&endpoint_override={endpoint.replace(':', '%3A')}"
    plan, units = read_all(make_config(uri))
    assert [source.uri for source in plan.sources] == ["s3://corpus/x/a.jsonl"]
    assert len(flat(units)) == 50


def test_a_store_that_cannot_be_reached_is_named(bucket: pafs.FileSystem) -> None:
    uri = "s3://corpus/x/a.jsonl?scheme=http&endpoint_override=127.0.0.1%3A9&retry_max_attempts=0"
    with pytest.raises(UserError, match=r"Cannot read the input s3://corpus/x/a\.jsonl"):
        make_plan(make_config(uri))


@pytest.mark.parametrize("name", ["out.jsonl.gz", "folder"])
def test_an_export_goes_to_a_store_and_is_labelled_from_there(
    bucket: pafs.FileSystem, tmp_path: Path, name: str
) -> None:
    made = make_dataset(tmp_path / "made", ["One. Two.", "Three."], {"x": lambda sentence: len(sentence) / 7})
    command = ("export", made, "--column", "x", "--output", f"s3://corpus/exported/{name}")
    assert run(*command)["documents"] == 2
    assert "exists already" in run(*command, expect=2)
    read = ("--text-field", "texts", "--scorer", "x=column:scores", "--output", tmp_path / "again")
    run("label", f"s3://corpus/exported/{name}", *read)
    assert [(row["text"], row["ends"], row["x"]) for row in rows_of(tmp_path / "again")] == [
        (row["text"], row["ends"], row["x"]) for row in rows_of(made)
    ]
    left = bucket.get_file_info(pafs.FileSelector("corpus/exported", recursive=True))
    assert not [info.path for info in left if "phf-export" in info.path and info.type == pafs.FileType.File]
